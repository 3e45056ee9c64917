"""Which images of a request are explained: those whose public prediction meets the condition of the request.

Only what everybody is told decides, in the numbers that are answered, so that whoever has the answer can check it.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from keylock.errors import InputError, UnknownNameError
from keylock.text.class_names import normalise_class_name
from keylock.text.conditions import parse_condition
from keylock.v1 import explanation_pb2 as pb

__all__ = ["Condition"]

Kind = Literal["probability_below", "margin_below", "predicted"]
_BELOW: Final = ("probability_below", "margin_below")
_DOUBLE: Final = struct.Struct(">d")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on the prediction of an image.

    Attributes:
        kind: What is looked at: the probability of the most probable class, by how much it is ahead of the second, or
            which class it is.
        below: What the probability or the margin has to be smaller than, above 0 and at most 1; 0 for classes.
        classes: Indices of the classes, ascending, each once; empty for the others.
    """

    kind: Kind
    below: float = 0.0
    classes: tuple[int, ...] = ()

    @classmethod
    def of(cls, message: pb.ExplainIf, classes: Sequence[str]) -> Self:
        """Reads the condition of a request.

        Args:
            message: As it was sent.
            classes: Those of the model.

        Raises:
            InputError: If it names no condition, no class, one that the model does not have, or a number out of range;
                `field` says which field of the message.
        """
        kind = message.WhichOneof("condition")
        if kind is None:
            raise InputError(
                "explain_if names no condition: set probability_below, margin_below or predicted, or leave it out"
            )
        if kind != "predicted":
            below = getattr(message, kind)
            # Comparisons with NaN are false.
            if not 0 < below <= 1:
                raise _at(kind, InputError(f"{kind} is {below:g}: give a number above 0 and at most 1"))
            return cls(kind, below=below)
        chosen = message.predicted
        if not chosen.labels and not chosen.indices:
            raise _at(kind, InputError("explain_if names no class: give labels or indices of classes, at least one"))
        found = set(chosen.indices)
        for index in found:
            if not 0 <= index < len(classes):
                raise _at(
                    f"{kind}.indices",
                    InputError(
                        f"class {index} does not exist: the model has {len(classes)} classes, 0 to {len(classes) - 1}"
                    ),
                )
        for given in chosen.labels:
            label = normalise_class_name(given)
            if label not in classes:
                raise _at(f"{kind}.labels", UnknownNameError("class", label, classes))
            found.add(list(classes).index(label))
        return cls(kind, classes=tuple(sorted(found)))

    @classmethod
    def parse(cls, text: str, classes: Sequence[str]) -> Self:
        """Reads a condition as a person writes it, and as `str` gives it; see `keylock.text.conditions`.

        Args:
            text: The condition.
            classes: Those of the model.

        Raises:
            InputError: If it is none, or about a class that the model does not have.
        """
        return cls.of(parse_condition(text), classes)

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Self:
        """Reads what `said` writes.

        Raises:
            ValueError: If it is something else.
        """
        [(kind, value)] = said.items()
        if kind in _BELOW and isinstance(value, str) and len(value) == 2 * _DOUBLE.size:
            (below,) = _DOUBLE.unpack(bytes.fromhex(value))
            made = cls(kind, below=below)  # type: ignore[arg-type]
            if 0 < below <= 1 and made.said() == said:
                return made
        elif kind == "predicted" and isinstance(value, list) and all(type(one) is int for one in value):
            made = cls("predicted", classes=tuple(value))
            if value and min(value) >= 0 and sorted(set(value)) == value:
                return made
        raise ValueError("no condition")

    def said(self) -> dict[str, Any]:
        """Returns it as entries of the audit log and digests have it, without a number that is not an integer.

        A number stands as the 16 hexadecimal digits of its bits (float64), so that every language writes the same.
        """
        if self.kind == "predicted":
            return {self.kind: list(self.classes)}
        return {self.kind: _DOUBLE.pack(self.below).hex()}

    def holds(self, told: pb.Prediction) -> bool:
        """Tells whether an image is explained, from its public prediction as it is answered."""
        if self.kind == "predicted":
            return told.index in self.classes
        # Numbers of float32, which float64 subtracts almost without rounding, and everybody in the same way. Of a model
        # with one class the margin is the probability.
        second = told.top[1].probability if self.kind == "margin_below" and len(told.top) > 1 else 0.0
        return told.probability - second < self.below

    def __str__(self) -> str:
        if self.kind == "predicted":
            return f"class in {', '.join(map(str, self.classes))}"
        return f"{self.kind.removesuffix('_below')} < {self.below!r}"


def _at(field: str, error: InputError) -> InputError:
    error.field = field
    return error
