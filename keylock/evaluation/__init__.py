"""How faithful keyed maps are and how much keyless ones leak, measured and never assumed."""

from keylock.evaluation.estimates import Estimate, estimate_mean, figure_of
from keylock.evaluation.faithfulness import Faithfulness, deletion_and_insertion
from keylock.evaluation.gate import GateCurve, GatePoint, gate_curve, near_miss
from keylock.evaluation.localisation import energy_inside, pointing_game, random_maps
from keylock.evaluation.measure import Measured, explain_alone, measure, run_explainers, wrong_key_offsets
from keylock.evaluation.renormalise import affine_statistics, renormalised
from keylock.evaluation.similarity import SIMILARITIES, enlarge, pearson, spearman, ssim, top_overlap

__all__ = [
    "SIMILARITIES",
    "Estimate",
    "Faithfulness",
    "GateCurve",
    "GatePoint",
    "Measured",
    "affine_statistics",
    "deletion_and_insertion",
    "energy_inside",
    "enlarge",
    "estimate_mean",
    "explain_alone",
    "figure_of",
    "gate_curve",
    "measure",
    "near_miss",
    "pearson",
    "pointing_game",
    "random_maps",
    "renormalised",
    "run_explainers",
    "spearman",
    "ssim",
    "top_overlap",
    "wrong_key_offsets",
]
