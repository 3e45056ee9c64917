"""What comes back about images: scores, labels alone, or nothing, as a query guard lets it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import torch
from torch import Tensor

from keylock.audit.contract import NotApplicableError

__all__ = ["Answer", "Answers", "NearCopiesError", "Tally"]

_CERTAIN: Final = 30.0
"""A logit beside which those of all other classes, which are 0, have no probability worth the name."""


class Answer(IntEnum):
    """What came back about an image."""

    REFUSED = 0
    LABEL = 1
    SCORES = 2


class NearCopiesError(NotApplicableError):
    """Whoever was asked does not answer a batch, because an image is a near copy of too many.

    It leaves an oracle, and ends an attack, only where not even an image of one colour is answered.

    Attributes:
        labels_left: Whether labels alone would be answered.
    """

    def __init__(self, *, labels_left: bool) -> None:
        super().__init__("whoever is asked takes an image of one colour for a near copy, and answers nothing")
        self.labels_left = labels_left


@dataclass(frozen=True, eq=False)
class Answers:
    """What came back about images.

    Attributes:
        logits: (count, classes). A label alone has all of the probability; what was refused is nan.
        kinds: Values of `Answer` (count,), int64.
    """

    logits: Tensor
    kinds: Tensor

    @classmethod
    def of_scores(cls, logits: Tensor) -> "Answers":
        """Return what logits (count, classes) tell."""
        return cls(logits, torch.full((len(logits),), Answer.SCORES))

    @classmethod
    def of_labels(cls, classes: Tensor, *, count: int) -> "Answers":
        """Return what labels (count,) tell, of so many classes."""
        logits = torch.nn.functional.one_hot(classes, count).float() * _CERTAIN
        return cls(logits, torch.full((len(classes),), Answer.LABEL))

    @classmethod
    def none(cls, classes: int) -> "Answers":
        """Return what a refusal tells of one image."""
        return cls(torch.full((1, classes), torch.nan), torch.full((1,), Answer.REFUSED))

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """Return the answers of several parts in a row."""
        return cls(torch.cat([part.logits for part in parts]), torch.cat([part.kinds for part in parts]))


@dataclass
class Tally:
    """How many images were answered, and how.

    Attributes:
        scores: With scores, or a map.
        labels: With a label alone.
        refused: Not at all.
    """

    scores: int = 0
    labels: int = 0
    refused: int = 0

    @property
    def answered(self) -> int:
        """How many were answered."""
        return self.scores + self.labels

    def notes(self) -> dict[str, int]:
        """Return what a report says of it."""
        return {
            "answered with scores": self.scores,
            "answered with labels": self.labels,
            "refused": self.refused,
        }
