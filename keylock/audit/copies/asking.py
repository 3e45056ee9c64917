"""Asking about copies of pictures as an attacker does, and keeping whatever is answered."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock.audit.answered import Answer, Answers
from keylock.audit.copies.attackers import Attacker
from keylock.audit.copies.disguises import DISGUISES, LEARNED, Pictures
from keylock.audit.copies.fits import fit_map
from keylock.audit.copies.masks import MASKS, Masks
from keylock.audit.oracle import Oracle
from keylock.imaging.preprocessing import Preprocessing

__all__ = ["Copied", "Pixels", "ask_about"]

_SIGN: Final = 8 / 255
_UP, _DOWN = 0.1, 0.025
_LEARNING: Final = 0.75
"""Share of the copies that a learning attacker spends on scores; of the rest the labels are asked for."""


class Pixels:
    """From preprocessed images to pictures in 0 to 1 and back."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._mean, self._std = (np.asarray(row, np.float32) for row in (preprocessing.mean, preprocessing.std))

    @property
    def fill(self) -> NDArray[np.float32]:
        """The mean colour (channels,), which is what covers."""
        return self._mean

    def pictures(self, images: Tensor) -> Pictures:
        """Return images (count, channels, height, width) as pictures (count, height, width, channels)."""
        found: Pictures = images.float().cpu().permute(0, 2, 3, 1).numpy() * self._std + self._mean
        return found

    def images(self, pictures: Pictures) -> Tensor:
        """Return pictures, clipped to 0 to 1, as images."""
        scaled = (np.clip(pictures, 0, 1).astype(np.float32) - self._mean) / self._std
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


@dataclass(frozen=True, eq=False)
class Copied:
    """What was answered about the copies of one picture.

    Attributes:
        masks: Of each copy (copies, height, width).
        answers: Probability of the picture's class (copies,), float64; 0 or 1 where the label alone was answered, nan
            where nothing was.
        kinds: Values of `Answer` (copies,).
    """

    masks: Masks
    answers: NDArray[np.float64]
    kinds: NDArray[np.int64]

    def first(self, copies: int) -> "Copied":
        """Return what was answered about the first copies."""
        return Copied(self.masks[:copies], self.answers[:copies], self.kinds[:copies])

    def map_by(self, fit: str) -> NDArray[np.float64]:
        """Return the map (height, width) that a way in `FITS` makes of it."""
        return fit_map(fit, self.masks, self.answers, self.kinds)


def ask_about(
    oracle: Oracle,
    images: Tensor,
    attacker: Attacker,
    *,
    copies: int,
    others: Pictures,
    pixels: Pixels,
    generator: np.random.Generator,
    patience: int | None = None,
    steps: Callable[[int], Iterator[int]] = lambda count: iter(range(count)),
) -> list[Copied]:
    """Ask about copies of pictures, one picture after the other; with several windows, all of them in each window.

    Args:
        oracle: Who is asked.
        images: What is to be explained, preprocessed (count, channels, height, width).
        attacker: How.
        copies: How many of each, at most.
        others: Unrelated pictures (count, height, width, channels), in 0 to 1.
        pixels: How pictures become images.
        generator: Draws masks and disguises.
        patience: After so many calls in a row that were refused, a picture is given up until the next window.
        steps: Told of every picture, in every window.

    Raises:
        NotApplicableError: The attacker waits, and a running server is asked.
    """
    asker = _Asker(oracle, attacker, others, pixels, generator, patience)
    pictures = pixels.pictures(images)
    asked = [_Asked.of(picture, attacker, copies, pixels.fill, generator) for picture in pictures]
    shown: list[Tensor | None] = [None] * len(images)
    for number in steps(attacker.windows * len(images)):
        window, place = divmod(number, len(images))
        if window > 0 and place == 0:
            oracle.wait()
        if attacker.shows_picture and window == 0:
            shown[place] = asker.ask_once(images[place : place + 1]).logits[0]
        rows = np.array_split(np.arange(len(asked[place].masks)), attacker.windows)[window].tolist()
        if attacker.learns:
            asker.ask_learning(asked[place], rows)
        else:
            asker.ask(asked[place], rows)
    return [one.told(logits) for one, logits in zip(asked, shown, strict=True)]


class _Asked:
    """Copies of one picture, and what was answered so far."""

    def __init__(self, masks: Masks, copies: Pictures) -> None:
        self.masks, self.copies = masks, copies
        self.logits: list[Tensor | None] = [None] * len(masks)
        self.kinds = np.full(len(masks), Answer.REFUSED, np.int64)

    @classmethod
    def of(
        cls,
        picture: Pictures,
        attacker: Attacker,
        count: int,
        fill: NDArray[np.float32],
        generator: np.random.Generator,
    ) -> "_Asked":
        masks = MASKS[attacker.masks](count, (picture.shape[0], picture.shape[1]), generator)
        if attacker.masks == "signs":
            copies = picture + (2 * masks[..., None] - 1) * np.float32(_SIGN)
        else:
            copies = fill + masks[..., None] * (picture - fill)
        if attacker.disguise is not None:
            copies = DISGUISES[attacker.disguise](copies, generator)
        return cls(masks, copies)

    def keep(self, rows: Sequence[int], found: Answers) -> None:
        """Keep what came back about some of the copies."""
        for row, logits, kind in zip(rows, found.logits, found.kinds.tolist(), strict=True):
            if kind != Answer.REFUSED:
                self.logits[row], self.kinds[row] = logits, kind

    def told(self, shown: Tensor | None) -> Copied:
        """Return what the answers tell about the picture's class, or else about the one that its copies have."""
        answers = np.full(len(self.masks), np.nan)
        known = [row for row, logits in enumerate(self.logits) if logits is not None]
        if known:
            found = torch.stack([logits for logits in self.logits if logits is not None]).double().softmax(dim=1)
            given = shown is not None and bool(shown.isfinite().all())
            label = int(shown.argmax()) if given and shown is not None else int(found.sum(dim=0).argmax())
            answers[known] = found[:, label].cpu().numpy()
        return Copied(self.masks, answers, self.kinds)


@dataclass(frozen=True, eq=False)
class _Asker:
    """Asks about copies as an attacker does."""

    oracle: Oracle
    attacker: Attacker
    others: Pictures
    pixels: Pixels
    generator: np.random.Generator
    patience: int | None

    def ask_once(self, images: Tensor) -> Answers:
        """Ask about images in one call."""
        return self.oracle.ask(images, scores=self.attacker.scores, labels=self.attacker.labels)

    def ask(self, asked: _Asked, rows: list[int]) -> None:
        """Ask about some copies, call by call."""
        refused = 0
        for start in range(0, len(rows), self.attacker.batch):
            chosen = rows[start : start + self.attacker.batch]
            if self.attacker.flood:
                drawn = self.generator.permutation(len(self.others))[: self.attacker.flood]
                self.oracle.ask(self.pixels.images(self.others[drawn]))
            if self.attacker.calls_anew:
                self.oracle.call_anew()
            found = self.ask_once(self.pixels.images(asked.copies[chosen]))
            asked.keep(chosen, found)
            refused = 0 if bool((found.kinds != Answer.REFUSED).any()) else refused + 1
            if self.patience is not None and refused >= self.patience:
                return

    def ask_learning(self, asked: _Asked, rows: list[int]) -> None:
        """Ask for scores of copies that are disguised as much as it takes, and in the end for labels of others.

        Each kind of disguise gets stronger by a step where a copy is refused, and weaker by a quarter of one where it
        is answered, which comes to rest where four copies of five are answered. The weakest is used next.

        References:
            Feng et al., "Stateful Defenses for Machine Learning Models Are Not Yet Secure Against Black-box Attacks",
            CCS 2023 (adapting to refusals). Kaernbach, "Simple adaptive testing with the weighted up-down method",
            Perception & Psychophysics 49, 1991.
        """
        strengths = dict.fromkeys(LEARNED, 0.0)
        learning = round(_LEARNING * len(rows))
        for row in rows[:learning]:
            name = min(strengths, key=lambda one: strengths[one])
            copy = asked.copies[row][None]
            disguised = LEARNED[name](copy, strengths[name], self.generator) if strengths[name] else copy
            found = self.oracle.ask(self.pixels.images(disguised), labels=False)
            asked.keep([row], found)
            change = _UP if int(found.kinds[0]) == Answer.REFUSED else -_DOWN
            strengths[name] = float(np.clip(strengths[name] + change, 0, 1))
        self.ask_labels(asked, rows[learning:])

    def ask_labels(self, asked: _Asked, rows: list[int]) -> None:
        """Ask for labels of some copies as they are."""
        for row in rows:
            asked.keep([row], self.oracle.ask(self.pixels.images(asked.copies[row][None]), scores=False))
