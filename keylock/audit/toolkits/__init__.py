"""Every saliency method of two public toolkits, Captum and pytorch-grad-cam, as explainers that nobody locked.

One file for each toolkit names all that the toolkit exports: how a method is called, or why it is no attack. A test
walks the exports, so that a new version with a new method is noticed.
"""

from keylock.audit.toolkits.base import TOOLKITS, Asked, Method, Reads, Toolkit, ToolkitMethod
from keylock.audit.toolkits.captum_methods import CAPTUM
from keylock.audit.toolkits.grad_cam_methods import PYTORCH_GRAD_CAM

__all__ = ["CAPTUM", "PYTORCH_GRAD_CAM", "TOOLKITS", "Asked", "Method", "Reads", "Toolkit", "ToolkitMethod"]
