"""What a lock shows to somebody who has one factor of two or a retired key, and how surely its gate tells the key."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from keylock.adapters import Adapter
from keylock.bundle.manifest import Figure
from keylock.errors import ModelError
from keylock.evaluation import compared_figure, figure_of, pearson, run_explainers
from keylock.explainers import Explainer
from keylock.keys import Key
from keylock.models import adapter_of, attach_adapter

__all__ = ["measure_factors", "measure_retired"]


def measure_factors(
    reference: nn.Module,
    published: nn.Module,
    opened: nn.Module,
    *,
    key: Key,
    explainers: Sequence[Explainer],
    images: Tensor,
    about: str = "",
    on_step: Callable[[str], None] = lambda _what: None,
) -> tuple[Figure, ...]:
    """Measure a two-factor lock with one of its factors missing.

    Args:
        reference: The classifier before locking.
        published: The classifier as it is published, which a thief of the key has beside it.
        opened: The same with its adapter, which a thief of the adapter has.
        key: The key.
        explainers: What to compare.
        images: Preprocessed test images (count, channels, height, width), on the device of the models.
        about: Kept with every figure: on what it was measured.
        on_step: Hears what is explained next: three times as often as `split_rows` makes batches.

    Returns:
        `leakage/key_alone/EXPLAINER`: correlation with the reference maps of keyed images, without the adapter;
        `leakage/adapter_alone/EXPLAINER`: that of clean images, with it; `gate/keyed` and `gate/keyless`: on which
        share of keyed and of clean images the gate opens.

    Raises:
        ModelError: `opened` has no adapter.
    """
    state = adapter_of(opened)
    if state is None:
        raise ModelError("the model has no adapter: measure_factors is for two-factor locks")
    seen = {"keyed": key.apply(images), "keyless": images}

    def run(model: nn.Module, rows: Tensor, what: str) -> dict[str, Tensor]:
        return run_explainers(model, explainers, rows, on_batch=lambda: on_step(what)).maps

    truth = run(reference, images, "reference maps")
    alone = {
        "key_alone": run(published, seen["keyed"], "maps with the key alone"),
        "adapter_alone": run(opened, images, "maps with the adapter alone"),
    }
    figures: list[Figure] = []
    for factor, maps in alone.items():
        for name in truth:
            figures += compared_figure(f"leakage/{factor}/{name}", pearson, maps[name], truth[name], about=about)
    with torch.no_grad():
        for kind, rows in seen.items():
            figures.append(figure_of(f"gate/{kind}", state.opens(rows).float(), unit="fraction", about=about))
    return tuple(figures)


def measure_retired(
    reference: nn.Module,
    published: nn.Module,
    old_adapter: Adapter | None,
    retired: Key,
    *,
    explainers: Sequence[Explainer],
    images: Tensor,
    about: str = "",
    on_step: Callable[[str], None] = lambda _what: None,
) -> tuple[Figure, ...]:
    """Measure what the holder of a retired key still recovers from the weights that came after it.

    Args:
        reference: The classifier before locking.
        published: The classifier as it is published now.
        old_adapter: The second factor that belongs to the retired key, whose holder has it; None for a lock by the key
            alone.
        retired: The retired key.
        explainers: What to compare.
        images: Preprocessed test images (count, channels, height, width), on the device of the models.
        about: Kept with every figure: on what it was measured.
        on_step: Hears what is explained next: twice as often as `split_rows` makes batches.

    Returns:
        `leakage/retired/EXPLAINER`: correlation with the reference maps of images with the retired key, on the new
        weights with the old adapter.
    """
    stolen = published if old_adapter is None else attach_adapter(published, old_adapter, retired)
    truth = run_explainers(reference, explainers, images, on_batch=lambda: on_step("reference maps")).maps
    rows = retired.apply(images)
    shown = run_explainers(stolen, explainers, rows, on_batch=lambda: on_step("maps with the retired key")).maps
    found: tuple[Figure, ...] = ()
    for name in truth:
        found += compared_figure(f"leakage/retired/{name}", pearson, shown[name], truth[name], about=about)
    return found
