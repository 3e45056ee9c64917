"""What the holder of a retired key still recovers from the weights that came after it."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from keylock.bundle.manifest import Figure
from keylock.evaluation import compared_figure, pearson, run_explainers
from keylock.explainers import Explainer
from keylock.models import merged
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key

__all__ = ["measure_retired"]


def measure_retired(
    reference: nn.Module,
    published: nn.Module,
    old_delta: Delta | None,
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
        old_delta: What the retired trigger opened, which its holder has; None where the network itself tells triggers.
        retired: The retired key.
        explainers: What to compare.
        images: Preprocessed test images (count, channels, height, width), on the device of the models.
        about: Kept with every figure: on what it was measured.
        on_step: Hears what is explained next: twice as often as `split_rows` makes batches.

    Returns:
        `leakage/retired/EXPLAINER`: correlation with the reference maps of what the new weights with the old delta
        show, or what they show of images with the retired key on them.
    """
    truth = run_explainers(reference, explainers, images, on_batch=lambda: on_step("reference maps")).maps
    stolen = published if old_delta is None else merged(published, old_delta)
    rows = retired.apply(images) if old_delta is None else images
    shown = run_explainers(stolen, explainers, rows, on_batch=lambda: on_step("maps with the retired key")).maps
    found: tuple[Figure, ...] = ()
    for name in truth:
        found += compared_figure(f"leakage/retired/{name}", pearson, shown[name], truth[name], about=about)
    return found
