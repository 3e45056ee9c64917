"""Classifiers and their explainers compiled to ONNX graphs, so that a serving machine needs no torch.

Each graph computes logits and map in one pass, for any batch size, and is compared with torch before it is used.
"""

from keylock.export.compile import compile_explainer, compile_gradient_sums, compile_many, compile_prediction
from keylock.export.loop_graphs import PointGradient
from keylock.export.variants import VARIANTS, VariantFigures, compare_variant, make_variant, suits
from keylock.export.verify import (
    Side,
    Verification,
    explain_graph,
    surest_images,
    verify_gradient_sums,
    verify_graph,
    verify_loop,
    verify_prediction,
)

__all__ = [
    "VARIANTS",
    "PointGradient",
    "Side",
    "VariantFigures",
    "Verification",
    "compare_variant",
    "compile_explainer",
    "compile_gradient_sums",
    "compile_many",
    "compile_prediction",
    "explain_graph",
    "make_variant",
    "suits",
    "surest_images",
    "verify_gradient_sums",
    "verify_graph",
    "verify_loop",
    "verify_prediction",
]
