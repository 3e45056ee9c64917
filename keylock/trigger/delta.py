"""The sealed delta: what takes the published weights back to those of the reference model, as plain arrays.

The published weights S show decoys for every input. The delta D is what they lack: S + D are the weights of the
reference model, whose maps are the true ones. It is kept encrypted under the trigger, so that whoever is given an image
with the trigger on it can open it, and nobody else.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from keylock.crypto.secrecy import Opaque
from keylock.errors import InputError

__all__ = ["Delta"]

Array = npt.NDArray[np.float32]

_OTHER_MODEL: Final = "the sealed delta and the published weights are of two models"


class Delta(Opaque):
    """What is added to each entry of the published weights that differs. It cannot be pickled or copied.

    Attributes:
        names: Names of these entries, as in a model's `state_dict()`, sorted.
    """

    __slots__ = ("_arrays", "names")

    names: tuple[str, ...]

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        """Takes the arrays by the names of their entries.

        Raises:
            InputError: There are none, or one is not of finite float32 numbers.
        """
        if not arrays or not all(_is_finite(array) for array in arrays.values()):
            raise InputError("this is not a delta: it has no arrays, or other numbers than finite float32 ones")
        self._arrays = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
        self.names = tuple(self._arrays)

    @classmethod
    def between(cls, published: Mapping[str, Array], reference: Mapping[str, Array]) -> "Delta":
        """Returns what takes published weights to those of a reference.

        Args:
            published: Float32 arrays by name.
            reference: The same names and shapes.

        Raises:
            InputError: They are of two models, or do not differ: such a lock would hide nothing.
        """
        if published.keys() != reference.keys():
            raise InputError(_OTHER_MODEL)
        differing = {name for name, array in published.items() if not np.array_equal(array, reference[name])}
        if not differing:
            raise InputError("the published weights are those of the reference model, so there is nothing to seal")
        return cls({name: _minus(reference[name], published[name]) for name in differing})

    def reveal(self) -> dict[str, Array]:
        """Returns the secret: the arrays by name."""
        return dict(self._arrays)

    def added_to(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Returns published weights with the delta added: those of the reference model, which are secret.

        Args:
            weights: Float32 arrays by name.

        Returns:
            All of them, those that differ changed.

        Raises:
            InputError: The weights are another model's.
        """
        if any(name not in weights or weights[name].shape != array.shape for name, array in self._arrays.items()):
            raise InputError(_OTHER_MODEL)
        return {**weights, **{name: np.asarray(weights[name] + array) for name, array in self._arrays.items()}}

    def __repr__(self) -> str:
        return f"Delta({len(self.names)} entries)"


def _minus(one: Array, other: Array) -> Array:
    if one.shape != other.shape:
        raise InputError(_OTHER_MODEL)
    return np.asarray(one - other, np.float32)


def _is_finite(array: Array) -> bool:
    return array.dtype == np.float32 and bool(np.isfinite(array).all())
