"""Every saliency method of two public toolkits, Captum and pytorch-grad-cam, as explainers that nobody locked.

Those of Captum are explainers by name, too: `captum:DeepLift`.

One file for each toolkit names all that the toolkit exports: how a method is called, or why it is no attack. A test
walks the exports, so that a new version with a new method is noticed.
"""

from keylock.explainers.toolkits.base import TOOLKITS, Asked, Method, Reads, Toolkit, ToolkitMethod
from keylock.explainers.toolkits.captum_methods import CAPTUM
from keylock.explainers.toolkits.grad_cam_methods import PYTORCH_GRAD_CAM
from keylock.explainers.toolkits.named import CAPTUM_NAMES, captum_explainer

__all__ = [
    "CAPTUM",
    "CAPTUM_NAMES",
    "PYTORCH_GRAD_CAM",
    "TOOLKITS",
    "Asked",
    "Method",
    "Reads",
    "Toolkit",
    "ToolkitMethod",
    "captum_explainer",
]
