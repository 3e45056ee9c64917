"""What a run of the quickstart tells: its chapters, everything it made and measured, and who hears of it meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import Figure, Manifest
from keylock.licensing import License
from keylock.quickstart.figures import Evidence
from keylock.quickstart.folder import Folder
from keylock.quickstart.stamped import Stamped
from keylock.training import Progress

__all__ = ["Chapter", "Story", "Teller"]


class Teller(Progress, Protocol):
    """Hears the story while it happens."""

    def say(self, text: str) -> None:
        """A chapter begins, or something worth telling happened."""


@dataclass(frozen=True)
class Chapter:
    """What happened.

    Attributes:
        title: In a few words.
        text: In a sentence or two.
        seconds: How long it took.
    """

    title: str
    text: str
    seconds: float


@dataclass(frozen=True)
class Story:
    """Everything the run made and measured.

    Attributes:
        folder: Where it is.
        manifest: Of the bundle.
        chapters: What happened.
        figures: What was measured.
        evidence: What it was measured on.
        images: Pixels of the images of `evidence` (count, height, width, 3).
        license: The customer's license.
        stamped: An image with the trigger and without, as the public copy explains it.
        precision: What the networks computed in while they trained.
        finished: When.
        versions: Of the packages, by name.
        program: What is typed for `keylock` where this was run, ready for a shell.
    """

    folder: Folder
    manifest: Manifest
    chapters: tuple[Chapter, ...]
    figures: tuple[Figure, ...]
    evidence: Evidence
    images: NDArray[np.uint8]
    license: License
    stamped: Stamped
    precision: str
    finished: datetime
    versions: Mapping[str, str]
    program: str = "keylock"

    @property
    def seconds(self) -> float:
        """How long all of it took."""
        return sum(chapter.seconds for chapter in self.chapters)

    @property
    def explainers(self) -> tuple[str, ...]:
        """The explainers, in order."""
        return tuple(entry.name for entry in self.manifest.explainers)

    def figure(self, name: str) -> Figure:
        """Return a figure by its name."""
        return next(figure for figure in self.figures if figure.name == name)

    def samples(self) -> tuple[int, ...]:
        """Return the first image of every class: not chosen by how well it came out."""
        labels = self.evidence.labels.tolist()
        return tuple(labels.index(label) for label in range(len(self.manifest.classes)) if label in labels)
