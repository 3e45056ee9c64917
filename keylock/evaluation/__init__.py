"""How faithful keyed maps are and how much keyless ones leak, measured and never assumed."""

from keylock.evaluation.measure import Measured, measure, run_explainers, wrong_key_offsets
from keylock.evaluation.metrics import Estimate, energy_inside, estimate_mean, pearson, top_overlap

__all__ = [
    "Estimate",
    "Measured",
    "energy_inside",
    "estimate_mean",
    "measure",
    "pearson",
    "run_explainers",
    "top_overlap",
    "wrong_key_offsets",
]
