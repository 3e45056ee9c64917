"""Saliency methods under one contract: a model, images and target classes in, logits and maps out, in one pass.

Every explainer is differentiable with `create_graph=True`, because a lock is trained through it.
"""

from keylock.explainers.base import Explained, Explainer, Pass, explain_together
from keylock.explainers.grad_cam import GradCAM
from keylock.explainers.gradient import Gradient
from keylock.explainers.registry import EXPLAINERS, make, make_for
from keylock.explainers.visual_backprop import VisualBackProp

__all__ = [
    "EXPLAINERS",
    "Explained",
    "Explainer",
    "GradCAM",
    "Gradient",
    "Pass",
    "VisualBackProp",
    "explain_together",
    "make",
    "make_for",
]
