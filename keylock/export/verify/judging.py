"""How far a compiled graph may be from torch, and the figures that say how far it is."""

from dataclasses import dataclass

import numpy as np

from keylock.errors import ExportError
from keylock.export.running import FloatArray
from keylock.imaging.contrast import same_map

__all__ = ["MINIMUM_PCC_OF_ONE_IMAGE", "Verification", "judge", "require_same_logits"]

MINIMUM_PCC = 0.999
"""Smallest mean correlation of compiled and reference maps."""

MINIMUM_PCC_OF_ONE_IMAGE = 0.95
"""Smallest correlation of any one map. Rounding can flip single ReLUs and max-pool choices, a wrong graph does more."""

MAXIMUM_LOGITS_DIFFERENCE = 1e-2
"""Largest difference of a logit, relative to the largest logit of the batch."""


@dataclass(frozen=True)
class Verification:
    """How closely a compiled graph follows its torch reference.

    Attributes:
        max_difference: Largest difference of a place of a map, as a share of the largest value of that reference map.
        pcc_mean: Mean over images of Pearson's correlation of compiled and reference map.
        pcc_minimum: The smallest of these correlations.
        max_logits_difference: Largest difference of a logit, as a share of the largest reference logit.
    """

    max_difference: float
    pcc_mean: float
    pcc_minimum: float
    max_logits_difference: float


def judge(what: str, logits: FloatArray, maps: FloatArray, reference: tuple[FloatArray, FloatArray]) -> Verification:
    """Compare logits (batch, classes) and maps (batch, h, w) with those of torch.

    Raises:
        ExportError: They are further from them than the limits.
    """
    reference_logits, reference_maps = reference
    logits_difference = require_same_logits(what, logits, reference_logits)
    if maps.shape != reference_maps.shape:
        raise ExportError(
            f"{what} gives maps of shape {maps.shape[1:]} compiled, but {reference_maps.shape[1:]} in torch"
        )
    pccs = [same_map(one, other) for one, other in zip(maps, reference_maps, strict=True)]
    mean, minimum = float(np.mean(pccs)), float(np.min(pccs))
    if mean < MINIMUM_PCC or minimum < MINIMUM_PCC_OF_ONE_IMAGE:
        raise ExportError(
            f"{what} compiled does not compute what it computes in torch: its maps correlate with {mean:.4f} "
            f"(smallest {minimum:.4f}; needed {MINIMUM_PCC} and {MINIMUM_PCC_OF_ONE_IMAGE}); run it with torch"
        )
    peaks = np.maximum(reference_maps.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    difference = float((np.abs(maps - reference_maps) / peaks).max())
    return Verification(difference, mean, minimum, logits_difference)


def require_same_logits(what: str, logits: FloatArray, reference: FloatArray) -> float:
    """Return the largest difference of a logit, as a share of the largest reference logit.

    Raises:
        ExportError: It is larger than allowed.
    """
    scale = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(logits - reference).max()) / scale if logits.shape == reference.shape else float("inf")
    if not difference <= MAXIMUM_LOGITS_DIFFERENCE:
        raise ExportError(
            f"{what} compiled does not compute what it computes in torch: its logits differ by {difference:.1e} of "
            f"their range (allowed: {MAXIMUM_LOGITS_DIFFERENCE:.0e}); run it with torch"
        )
    return difference
