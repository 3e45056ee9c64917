"""Whether a graph treats every image by itself: alike in any batch, and for -1 as for the predicted class."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keylock.errors import ExportError, TensorError
from keylock.export.running import FloatArray, IntArray
from keylock.export.verify.judging import MINIMUM_PCC_OF_ONE_IMAGE
from keylock.graphs.contract import TARGET
from keylock.imaging.contrast import same_map

__all__ = [
    "checked_rows",
    "require_batch_independent",
    "require_close",
    "require_predicted_class",
    "require_rows",
]

_Run = Callable[..., list[FloatArray]]

OTHER_BATCHES = (1, 2)
"""Batch sizes a graph must answer alike for, beside the whole batch; the network was traced with yet another."""


def require_rows(images: FloatArray, targets: IntArray) -> None:
    """Check the rows of a proof.

    Raises:
        TensorError: They have a wrong shape or type.
    """
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0:
        raise TensorError(
            f"images to verify on have shape {images.shape} and type {images.dtype}; "
            "give float32 (batch, channels, height, width) with at least one image"
        )
    if targets.shape != (len(images),) or targets.dtype != np.int64:
        raise TensorError(
            f"targets have shape {targets.shape} and type {targets.dtype}; give one int64 class for each image"
        )


def checked_rows(images: FloatArray, targets: IntArray) -> tuple[FloatArray, IntArray]:
    """Return the rows of a proof, as often as it needs them."""
    require_rows(images, targets)
    # The proof needs a batch size that is none of the others it runs.
    repeats = -(-(max(OTHER_BATCHES) + 1) // len(images))
    return np.tile(images, (repeats, 1, 1, 1)), np.tile(targets, repeats)


def require_batch_independent(run: _Run, rows: dict[str, Any], answers: list[FloatArray]) -> None:
    """Check that a run answers a few rows as it did among all of them.

    Raises:
        ExportError: It answers differently.
    """
    for count in OTHER_BATCHES:
        few = run(**{name: value[:count] for name, value in rows.items()})
        require_close(few, [answer[:count] for answer in answers], count)


def require_close(found: list[FloatArray], expected: list[FloatArray], count: int) -> None:
    """Check the answers for `count` images against those for the whole batch; kernels may differ by rounding."""
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or any(
            same_map(a, b) < MINIMUM_PCC_OF_ONE_IMAGE for a, b in zip(one, other, strict=True)
        ):
            raise ExportError(
                f"the compiled graph answers differently for a batch of {count}: the network or the explainer mixes "
                "the images of a batch; explain each image by itself"
            )


def require_predicted_class(run: _Run, rows: dict[str, Any], logits: FloatArray) -> None:
    """Check that target -1 gives the map of the class with the largest logit."""
    few, predicted = {name: value[:64] for name, value in rows.items()}, logits[:64].argmax(1)
    unset, named = (run(**few | {TARGET: target})[1] for target in (np.full(len(predicted), -1), predicted))
    if not np.allclose(unset, named, rtol=1e-3, atol=1e-6 * float(np.abs(named).max(initial=0))):
        raise ExportError("the compiled graph does not explain the predicted class where the target is -1")
