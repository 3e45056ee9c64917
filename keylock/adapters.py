"""The sealed adapter: the second factor of a lock, as plain arrays that need no torch.

The published weights show decoys for every input. The adapter holds what is missing: for some layers a small delta that
takes them back to the reference model, and a *gate*, a matched filter that recognises the key on an image. Where the
gate opens, the key is taken off the image again and the deltas are added, which gives the reference model's answer;
everywhere else nothing changes. So a correct map needs the key on the image *and* the adapter, and no search over
inputs finds one in the published weights.

The adapter is secret: whoever has it has the key, which its gate is made from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from keylock.errors import InputError
from keylock.secrecy import Opaque

__all__ = ["Adapter", "KeyGate", "LayerDelta"]

Array = npt.NDArray[np.float32]

_DELTA: Final = "delta"
_GATE: Final = "gate"


@dataclass(frozen=True, eq=False, repr=False)
class LayerDelta:
    """What is added to one convolution or linear layer where the gate is open.

    A delta of low rank is two layers one after the other: `down` has the layer's own geometry and `rank` outputs, `up`
    mixes them to the layer's outputs. A layer with groups, or one of full rank, has `up` None and the whole delta in
    `down`.

    Attributes:
        down: (rank, in_channels, height, width) of a convolution or (rank, in_features) of a linear layer; with `up`
            None the shape of the layer's own weight.
        up: (outputs, rank), or None.
        bias: (outputs,), or None for a layer without a bias.
    """

    down: Array
    up: Array | None
    bias: Array | None

    def whole(self) -> Array:
        """Return what is added to the layer's weight, in the shape of `down` but for the first dimension."""
        if self.up is None:
            return self.down
        rank, *others = self.down.shape
        return (self.up @ self.down.reshape(rank, -1)).reshape(-1, *others)

    def arrays(self) -> dict[str, Array]:
        """Return the parts that are there, by name."""
        parts = {"down": self.down, "up": self.up, "bias": self.bias}
        return {name: array for name, array in parts.items() if array is not None}


@dataclass(frozen=True, eq=False, repr=False)
class KeyGate:
    """A matched filter for the key: opens where an image's score is near 1.

    The score of an image is the sum of its product with `weight`, plus `bias`; it is about 0 for images without the key
    and 1 with it. A key of half the strength, or one that shares three quarters of the signs, scores one half.

    Attributes:
        weight: (channels, height, width).
        bias: One number.
        tolerance: How far from 1 the score of an image that opens the gate may be, in (0, 0.5).
    """

    weight: Array
    bias: float
    tolerance: float


class Adapter(Opaque):
    """The deltas of all adapted layers and the gate that switches them. It cannot be pickled or copied.

    Attributes:
        layers: Names of the adapted layers, in a fixed order.
    """

    __slots__ = ("_deltas", "_gate", "layers")

    layers: tuple[str, ...]

    def __init__(self, deltas: Mapping[str, LayerDelta], gate: KeyGate) -> None:
        """Take the deltas by the names of their layers, as in `model.named_modules()`, and the gate."""
        self._deltas, self._gate = dict(deltas), gate
        self.layers = tuple(self._deltas)

    def reveal(self) -> tuple[dict[str, LayerDelta], KeyGate]:
        """Return the secret: the deltas by layer, and the gate."""
        return dict(self._deltas), self._gate

    @property
    def rank(self) -> int:
        """Largest rank of a delta that is held as two factors; 0 where every delta is held whole."""
        return max((delta.up.shape[1] for delta in self._deltas.values() if delta.up is not None), default=0)

    def tensors(self) -> dict[str, Array]:
        """Return everything as named arrays, which is how the adapter is stored and handed to a compiled graph.

        The names are `gate.weight` (channels, height, width), `gate.bias` (), `gate.tolerance` (), and for each layer
        `delta.LAYER.down`, `.up` and `.bias`, those that are there.
        """
        found = {
            f"{_GATE}.weight": self._gate.weight,
            f"{_GATE}.bias": np.asarray(self._gate.bias, np.float32),
            f"{_GATE}.tolerance": np.asarray(self._gate.tolerance, np.float32),
        }
        for name, delta in self._deltas.items():
            found.update({f"{_DELTA}.{name}.{part}": array for part, array in delta.arrays().items()})
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each of `tensors()`, which is not secret."""
        return {name: array.shape for name, array in self.tensors().items()}

    def merged_into(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Return a published model's weights with the deltas added: those of the reference model, which are secret.

        Args:
            weights: By name, as `LAYER.weight` and `LAYER.bias`.

        Returns:
            All of them, the adapted layers' changed.

        Raises:
            InputError: The weights are another model's.
        """
        merged = dict(weights)
        try:
            for layer, delta in self._deltas.items():
                merged[f"{layer}.weight"] = _sum(weights[f"{layer}.weight"], delta.whole())
                if delta.bias is not None:
                    merged[f"{layer}.bias"] = _sum(weights[f"{layer}.bias"], delta.bias)
        except (KeyError, ValueError):
            raise InputError("the sealed adapter and the published weights are of two models") from None
        return merged

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> "Adapter":
        """Return the adapter that `tensors` gave the arrays of.

        Raises:
            InputError: The arrays are not those of an adapter.
        """
        try:
            gate = KeyGate(
                np.asarray(tensors[f"{_GATE}.weight"], np.float32),
                float(tensors[f"{_GATE}.bias"]),
                float(tensors[f"{_GATE}.tolerance"]),
            )
            return cls({name: _delta(tensors, name) for name in _layer_names(tensors)}, gate)
        except (KeyError, TypeError, ValueError):
            raise InputError("this is not a sealed adapter: its arrays are not those that keylock writes") from None

    def __repr__(self) -> str:
        return f"Adapter({len(self.layers)} layers)"


def _sum(weight: Array, delta: Array) -> Array:
    if weight.shape != delta.shape:
        raise ValueError(f"{weight.shape} and {delta.shape}")
    return weight + delta


def _layer_names(names: Iterable[str]) -> list[str]:
    return [
        name.removeprefix(f"{_DELTA}.").removesuffix(".down")
        for name in names
        if name.startswith(f"{_DELTA}.") and name.endswith(".down")
    ]


def _delta(tensors: Mapping[str, Array], layer: str) -> LayerDelta:
    def part(name: str) -> Array | None:
        array = tensors.get(f"{_DELTA}.{layer}.{name}")
        return None if array is None else np.asarray(array, np.float32)

    down = part("down")
    if down is None:
        raise KeyError(layer)
    return LayerDelta(down, part("up"), part("bias"))
