"""What a lock is worth, measured on images: accuracy, fidelity, leakage beside chance, energy inside the object.

A wrong key is drawn anew for every image, half of them other tiles and half noise, so that the figure does not hang on
one lucky draw.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from keylock.bundle.manifest import Figure
from keylock.evaluation.counting import compared_figure, constant_share
from keylock.evaluation.estimates import figure_of
from keylock.evaluation.localisation import energy_inside
from keylock.evaluation.similarity import pearson, top_overlap
from keylock.explainers import Explainer, explain_many
from keylock.locking.key_patterns import random_signs, repeat_tiles
from keylock.models import added_to_inputs, split_rows
from keylock.trigger.keys import Key

__all__ = ["Measured", "measure", "run_explainers", "wrong_key_offsets"]


@dataclass(frozen=True)
class Measured:
    """Logits and maps of one kind of input, over all images.

    Attributes:
        logits: (count, classes).
        maps: For each explainer's name, (count, h, w).
    """

    logits: Tensor
    maps: dict[str, Tensor]


def run_explainers(
    model: nn.Module,
    explainers: Sequence[Explainer],
    images: Tensor,
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> Measured:
    """Explain the predicted class of images (count, channels, height, width), in batches of bounded size.

    Args:
        model: The classifier.
        explainers: What to explain with.
        images: Preprocessed images.
        on_batch: Called before each batch, of which there are as many as `split_rows` makes.
    """
    parts = []
    for (rows,) in split_rows(images):
        on_batch()
        parts.append(explain_many(model, explainers, rows, torch.full((len(rows),), -1, device=rows.device)))
    maps = {explainer.name: torch.cat([found[explainer.name] for _, found in parts]) for explainer in explainers}
    return Measured(torch.cat([logits for logits, _ in parts]), maps)


def wrong_key_offsets(key: Key, count: int, *, seed: int = 0) -> Tensor:
    """Draw wrong keys of the key's strength (count, channels, height, width): other tiles and noise by turns."""
    offset = torch.from_numpy(np.array(key.reveal()))
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = key.shape
    drawn = repeat_tiles(random_signs(count, channels, key.tile, generator=generator), (height, width))
    drawn[1::2] = torch.rand(drawn[1::2].shape, generator=generator) * 2 - 1
    return drawn * offset.abs()


def measure(
    reference: nn.Module,
    locked: nn.Module,
    *,
    key: Key,
    explainers: Sequence[Explainer],
    images: Tensor,
    labels: Tensor,
    masks: Tensor | None = None,
    about: str = "",
    on_step: Callable[[str], None] = lambda _what: None,
) -> tuple[Figure, ...]:
    """Measure a lock.

    Args:
        reference: The classifier before locking.
        locked: The classifier after it.
        key: The key it was locked with.
        explainers: What to compare.
        images: Preprocessed test images (count, channels, height, width), on the device of the models.
        labels: Class indices (count,).
        masks: True inside the object (count, height, width), where that is known.
        about: Kept with every figure: on what it was measured.
        on_step: Hears what is explained next: four times as often as `split_rows` makes batches.

    Returns:
        Figures named `accuracy/...`, `agreement/...`, `fidelity/EXPLAINER`, `leakage/keyless/EXPLAINER`,
        `leakage/wrong_key/EXPLAINER`, `chance/EXPLAINER`, `top_overlap/...` and, with masks, `energy/...`. Pairs
        with constant true maps are left out as `keylock.evaluation.counting` says; where there are constant maps,
        `constant/reference/EXPLAINER` and `constant/keyed/EXPLAINER` are their shares.
    """
    offsets = wrong_key_offsets(key, len(images)).to(images.device)

    def maps(model: nn.Module, rows: Tensor, what: str) -> Measured:
        return run_explainers(model, explainers, rows, on_batch=lambda: on_step(what))

    with added_to_inputs(locked, torch.from_numpy(key.reveal()).to(images.device)):
        keyed_run = maps(locked, images, "maps with the key")
    runs = {
        "reference": maps(reference, images, "reference maps"),
        "keyed": keyed_run,
        "keyless": maps(locked, images, "maps without the key"),
        "wrong_key": maps(locked, images + offsets, "maps with wrong keys"),
    }
    figures = [*_figures_of_predictions({kind: run.logits for kind, run in runs.items()}, labels, about=about)]
    for explainer in explainers:
        maps_of = {kind: run.maps[explainer.name] for kind, run in runs.items()}
        figures += _figures_of_maps(explainer.name, maps_of, masks, about=about)
    if masks is not None:
        figures.append(figure_of("object_area", masks.float().mean(dim=(1, 2)), unit="fraction", about=about))
    return tuple(figures)


def _figures_of_predictions(logits: Mapping[str, Tensor], labels: Tensor, *, about: str) -> Iterator[Figure]:
    """Yield what logits say, (count, classes) of each kind of input."""
    expected = logits["reference"].argmax(dim=1)
    for kind, given in logits.items():
        predicted = given.argmax(dim=1)
        yield figure_of(f"accuracy/{kind}", (predicted == labels).float(), unit="fraction", about=about)
        if kind != "reference":
            yield figure_of(f"agreement/{kind}", (predicted == expected).float(), unit="fraction", about=about)


def _figures_of_maps(name: str, maps: Mapping[str, Tensor], masks: Tensor | None, *, about: str) -> Iterator[Figure]:
    """Yield what maps of an explainer say, (count, h, w) of each kind of input."""
    truth, keyed = maps["reference"], maps["keyed"]
    yield from compared_figure(f"fidelity/{name}", pearson, keyed, truth, opened=True, about=about)
    for what, others in (
        (f"leakage/keyless/{name}", maps["keyless"]),
        (f"leakage/wrong_key/{name}", maps["wrong_key"]),
        (f"chance/{name}", truth.roll(1, dims=0)),
    ):
        yield from compared_figure(what, pearson, others, truth, about=about)
    for kind in ("keyed", "keyless"):
        what, opened = f"top_overlap/{kind}/{name}", kind == "keyed"
        yield from compared_figure(what, top_overlap, maps[kind], truth, opened=opened, unit="fraction", about=about)
    yield from constant_share(f"constant/reference/{name}", truth, about=about)
    yield from constant_share(f"constant/keyed/{name}", keyed, about=about)
    if masks is not None:
        for kind, shown in maps.items():
            yield figure_of(f"energy/{kind}/{name}", energy_inside(shown, masks), unit="fraction", about=about)
