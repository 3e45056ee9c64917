"""How faithful keyed maps are and how much keyless ones leak, measured and never assumed."""

from keylock.evaluation.measure import Measured, measure, run_explainers, wrong_key_offsets
from keylock.evaluation.metrics import Estimate, energy_inside, estimate_mean, pearson, top_overlap
from keylock.evaluation.renormalise import affine_statistics, renormalised

__all__ = [
    "Estimate",
    "Measured",
    "affine_statistics",
    "energy_inside",
    "estimate_mean",
    "measure",
    "pearson",
    "renormalised",
    "run_explainers",
    "top_overlap",
    "wrong_key_offsets",
]
