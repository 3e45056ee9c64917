"""How faithful keyed maps are and how much keyless ones leak, measured and never assumed."""

from keylock.evaluation.counting import compared_figure, constant_share, counting_pairs
from keylock.evaluation.estimates import Estimate, estimate_mean, figure_of
from keylock.evaluation.explaining import added_to_inputs, explain_alone
from keylock.evaluation.faithfulness import Faithfulness, deletion, deletion_and_insertion
from keylock.evaluation.gate import GateCurve, GatePoint, gate_curve, near_miss
from keylock.evaluation.localisation import energy_inside, pointing_game, random_maps
from keylock.evaluation.measure import Measured, measure, run_explainers, wrong_key_offsets
from keylock.evaluation.reference import find_reference, load_reference, reference_digest
from keylock.evaluation.renormalise import affine_statistics, renormalised
from keylock.evaluation.report import EvaluatedExplainer, Evaluation
from keylock.evaluation.selection import Selection, select
from keylock.evaluation.similarity import SIMILARITIES, enlarge, pearson, spearman, ssim, top_overlap
from keylock.evaluation.subject import INPUTS, Compared, Subject

__all__ = [
    "INPUTS",
    "SIMILARITIES",
    "Compared",
    "Estimate",
    "EvaluatedExplainer",
    "Evaluation",
    "Faithfulness",
    "GateCurve",
    "GatePoint",
    "Measured",
    "Selection",
    "Subject",
    "added_to_inputs",
    "affine_statistics",
    "compared_figure",
    "constant_share",
    "counting_pairs",
    "deletion",
    "deletion_and_insertion",
    "energy_inside",
    "enlarge",
    "estimate_mean",
    "explain_alone",
    "figure_of",
    "find_reference",
    "gate_curve",
    "load_reference",
    "measure",
    "near_miss",
    "pearson",
    "pointing_game",
    "random_maps",
    "reference_digest",
    "renormalised",
    "run_explainers",
    "select",
    "spearman",
    "ssim",
    "top_overlap",
    "wrong_key_offsets",
]
