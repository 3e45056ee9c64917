"""Prove that compiled graphs compute what torch computes, for every batch size.

A proof runs a graph in ONNX Runtime on given images, as one batch, alone and in pairs, with the classes asked for and
with -1 (the predicted class), and compares each map with the explainer's own in torch. A lock is proved from both
sides: its graphs with the published weights against the published network, and with the opened ones against the
reference.
"""

from keylock.export.verify.explanations import explain_graph, verify_graph
from keylock.export.verify.judging import Verification
from keylock.export.verify.loops import verify_loop
from keylock.export.verify.predictions import verify_prediction
from keylock.export.verify.sides import Side, surest_images
from keylock.export.verify.sums import verify_gradient_sums

__all__ = [
    "Side",
    "Verification",
    "explain_graph",
    "surest_images",
    "verify_gradient_sums",
    "verify_graph",
    "verify_loop",
    "verify_prediction",
]
