"""Classifiers and their explainers compiled to ONNX graphs, so that a serving machine needs no torch.

Each graph computes logits and map in one pass, for any batch size, and is compared with torch before it is used.
"""

from keylock.export.compile import (
    compile_explainer,
    compile_gradient_sums,
    compile_keyed_prediction,
    compile_prediction,
)
from keylock.export.loop_graphs import PointGradient
from keylock.export.mergeable import compile_mergeable, compile_mergeable_prediction, compile_mergeable_sums
from keylock.export.running import Secrets
from keylock.export.variants import VARIANTS, VariantFigures, compare_variant, make_variant, suits
from keylock.export.verify import (
    Verification,
    keyed_and_keyless_maps,
    surest_images,
    verify_gradient_sums,
    verify_graph,
    verify_keyed_prediction,
    verify_loop,
    verify_mergeable,
    verify_mergeable_sums,
    verify_prediction,
)

__all__ = [
    "VARIANTS",
    "PointGradient",
    "Secrets",
    "VariantFigures",
    "Verification",
    "compare_variant",
    "compile_explainer",
    "compile_gradient_sums",
    "compile_keyed_prediction",
    "compile_mergeable",
    "compile_mergeable_prediction",
    "compile_mergeable_sums",
    "compile_prediction",
    "keyed_and_keyless_maps",
    "make_variant",
    "suits",
    "surest_images",
    "verify_gradient_sums",
    "verify_graph",
    "verify_keyed_prediction",
    "verify_loop",
    "verify_mergeable",
    "verify_mergeable_sums",
    "verify_prediction",
]
