"""A lock under examination: two models, the key, images, and figures that compare the maps of one explainer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from keylock.bundle.manifest import Figure
from keylock.errors import InputError
from keylock.evaluation.counting import constant_share, counting_pairs, figure_of_pairs
from keylock.evaluation.estimates import figure_of
from keylock.evaluation.explaining import added_to_inputs, explain_alone
from keylock.evaluation.faithfulness import deletion_and_insertion
from keylock.evaluation.localisation import energy_inside, pointing_game, random_maps
from keylock.evaluation.measure import wrong_key_offsets
from keylock.evaluation.similarity import SIMILARITIES, enlarge
from keylock.explainers import Explainer
from keylock.trigger.keys import Key

__all__ = ["INPUTS", "Compared", "Subject"]

INPUTS = ("keyed", "keyless", "wrong_key", "flipped_key")
"""What is added to every image the locked model sees: the key, nothing, a wrong key, the key with its signs turned."""

_ROWS = 32
_SAMPLES = 6


@dataclass(frozen=True)
class Compared:
    """What one explainer shows.

    Attributes:
        figures: Named as docs/evaluation.md says.
        samples: Maps of the first images (count, h, w): `reference`, and one for each of `INPUTS`.
    """

    figures: tuple[Figure, ...]
    samples: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A lock, and what to measure it on.

    Attributes:
        module: The locked classifier; it opens by itself where the key is on its input.
        reference: The classifier before locking.
        key: The key.
        images: Preprocessed test images (count, channels, height, width), two at least, on the device of the models.
        labels: Class indices (count,).
        masks: True inside the object (count, height, width), where that is known.
        seed: Of wrong keys and random maps.
        about: Kept with every figure: on what it was measured.
    """

    module: nn.Module
    reference: nn.Module
    key: Key
    images: Tensor
    labels: Tensor
    masks: Tensor | None = None
    seed: int = 0
    about: str = ""

    def __post_init__(self) -> None:
        if len(self.images) < 2:
            raise InputError(f"{len(self.images)} images have no two maps to compare: take 2 at least, better hundreds")

    def predictions(self) -> tuple[Figure, ...]:
        """Measure `accuracy/INPUT` and `agreement/INPUT`, the share of predictions equal to the reference's."""
        found: dict[str, list[Tensor]] = {kind: [] for kind in ("reference", *INPUTS)}
        for rows, offsets in self._parts():
            found["reference"].append(_predict(self.reference, self.images[rows], None))
            for kind, offset in offsets.items():
                found[kind].append(_predict(self.module, self.images[rows], offset))
        classes = {kind: torch.cat(parts) for kind, parts in found.items()}
        figures = [
            self._figure(f"accuracy/{kind}", (predicted == self.labels).float(), "fraction")
            for kind, predicted in classes.items()
        ]
        figures += [
            self._figure(f"agreement/{kind}", (classes[kind] == classes["reference"]).float(), "fraction")
            for kind in INPUTS
        ]
        return tuple(figures)

    def compare(
        self,
        label: str,
        explainer: Explainer,
        *,
        count: int | None = None,
        on_part: Callable[[], None] = lambda: None,
    ) -> Compared:
        """Hold the maps of one explainer against the reference's, and against the objects where they are known.

        Args:
            label: What its figures are called.
            explainer: It explains the class that the model predicts for what it is given.
            count: On how many of the images, two at least; by default on all.
            on_part: Called before each of the parts that `count_parts` counts.

        Returns:
            `SIMILARITY/INPUT/LABEL` for every one of `SIMILARITIES` and `INPUTS`, and `chance` as an input: maps of
            two different images. Pairs with constant true maps are left out as `keylock.evaluation.counting` says, and
            a figure of which no pair is left is missing. Where there are constant maps, `constant/INPUT/LABEL` is their
            share, with the input `reference` besides. With masks also `energy/INPUT/LABEL` and `pointing/INPUT/LABEL`,
            with the inputs `reference` and `random`. And the maps of some images.
        """
        values: dict[str, list[Tensor]] = {}
        counted: dict[str, list[Tensor]] = {}
        shown: dict[str, list[Tensor]] = {}
        generator = torch.Generator().manual_seed(self.seed)

        def add(name: str, part: Tensor) -> None:
            values.setdefault(name, []).append(part)

        for rows, offsets in self._parts(count):
            on_part()
            truth = explain_alone(self.reference, explainer, self.images[rows]).maps
            maps = {"reference": truth}
            for kind, offset in offsets.items():
                maps[kind] = explain_alone(self.module, explainer, self.images[rows], offset=offset).maps
            for kind, found in {**maps, "chance": truth.roll(1, dims=0)}.items():
                if kind != "chance":
                    shown.setdefault(kind, []).append(found.cpu())
                if kind != "reference":
                    counted.setdefault(kind, []).append(counting_pairs(found, truth, opened=kind == "keyed").cpu())
                    for name, value in _similarities(found, truth, self._size).items():
                        add(f"{name}/{kind}", value)
            if self.masks is not None:
                for kind, found in {**maps, "random": random_maps(truth, generator=generator)}.items():
                    add(f"energy/{kind}", energy_inside(found, self.masks[rows]))
                    add(f"pointing/{kind}", pointing_game(found, self.masks[rows]))
        figures: list[Figure] = []
        for name, parts in values.items():
            similarity, _, kind = name.partition("/")
            together, what = torch.cat(parts), f"{name}/{label}"
            if similarity in SIMILARITIES:
                kept = torch.cat(counted[kind])
                figures += figure_of_pairs(what, together, kept, unit=_unit(name), about=self._about(count))
            else:
                figures.append(self._figure(what, together, _unit(name), count))
        for kind, parts in shown.items():
            figures += constant_share(f"constant/{kind}/{label}", torch.cat(parts), about=self._about(count))
        return Compared(tuple(figures), {kind: torch.cat(parts)[:_SAMPLES] for kind, parts in shown.items()})

    def faithfulness(self, label: str, explainer: Explainer, *, count: int, steps: int = 16) -> tuple[Figure, ...]:
        """Measure deletion and insertion of the maps of one explainer.

        What is explained is the class that the locked model predicts without the key, which is what a caller is told.

        Args:
            label: What its figures are called.
            explainer: The explainer.
            count: On how many of the images, at most.
            steps: In how many steps the pixels are removed.

        Returns:
            `deletion/INPUT/LABEL` and `insertion/INPUT/LABEL` for the inputs `reference`, `keyed`, `keyless` and
            `random`, judged by the predictions that a caller sees; and the same as `deletion_by_reference/...` and
            `insertion_by_reference/...`, judged by the reference model.
        """
        images = self.images[:count]
        targets = _predict(self.module, images, None)
        offsets = {"keyed": self._offset, "keyless": None}
        maps = {"reference": explain_alone(self.reference, explainer, images, targets=targets).maps}
        for kind, offset in offsets.items():
            maps[kind] = explain_alone(self.module, explainer, images, offset=offset, targets=targets).maps
        generator = torch.Generator().manual_seed(self.seed)
        maps["random"] = random_maps(maps["reference"], generator=generator)
        figures = []
        for suffix, judge in (("", self.module), ("_by_reference", self.reference)):
            for kind, found in maps.items():
                areas = deletion_and_insertion(judge, images, found, targets, generator=generator, steps=steps)
                for curve, values in zip(areas._fields, areas, strict=True):
                    figures.append(self._figure(f"{curve}{suffix}/{kind}/{label}", values, "area", len(images)))
        return tuple(figures)

    def object_area(self) -> tuple[Figure, ...]:
        """Measure `object_area`, the share of the image inside the object; nothing where there are no masks."""
        if self.masks is None:
            return ()
        return (self._figure("object_area", self.masks.float().mean(dim=(1, 2)), "fraction"),)

    @cached_property
    def _offset(self) -> Tensor:
        return torch.from_numpy(self.key.reveal()).to(self.images.device)

    @property
    def _size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    def count_parts(self, count: int | None = None) -> int:
        """Return in how many parts the images, or the first so many, are compared."""
        return -(-self._clip(count) // _ROWS)

    def _clip(self, count: int | None) -> int:
        return len(self.images) if count is None else max(2, min(count, len(self.images)))

    def _parts(self, count: int | None = None) -> Iterator[tuple[slice, dict[str, Tensor | None]]]:
        """Yield the images, or the first so many, in parts of two or more, with what is added to each.

        Every part has a wrong key of its own, other tiles and noise by turns.
        """
        count, parts = self._clip(count), self.count_parts(count)
        edges = [place * count // parts for place in range(parts + 1)]
        wrong = wrong_key_offsets(self.key, parts, seed=self.seed).to(self.images.device)
        for (start, stop), offset in zip(pairwise(edges), wrong, strict=True):
            added = {"keyed": self._offset, "keyless": None, "wrong_key": offset, "flipped_key": -self._offset}
            yield slice(start, stop), added

    def _figure(self, name: str, values: Tensor, unit: str, count: int | None = None) -> Figure:
        return figure_of(name, values, unit=unit, about=self._about(count))

    def _about(self, count: int | None = None) -> str:
        return self.about if count is None or count >= len(self.images) else f"the first {count} of {self.about}"


@torch.no_grad()
def _predict(model: nn.Module, images: Tensor, offset: Tensor | None) -> Tensor:
    with added_to_inputs(model, offset):
        predicted: Tensor = model(images).argmax(dim=1)
    return predicted


def _similarities(maps: Tensor, truth: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return every similarity of pairs of maps; the structural one at the size of the image, as it is published."""
    large = enlarge(maps, size), enlarge(truth, size)
    return {
        name: function(*(large if name == "ssim" else (maps, truth))).cpu() for name, function in SIMILARITIES.items()
    }


def _unit(name: str) -> str:
    return "correlation" if name.startswith(("pcc", "spearman")) else "index" if name[:4] == "ssim" else "fraction"
