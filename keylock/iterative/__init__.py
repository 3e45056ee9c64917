"""Explainers as loops over the answers of a classifier, in NumPy alone: what a server runs where one graph is too few.

Methods that perturb the image read logits, methods that walk a path or add noise read input gradients. Each class here
holds the parameters of one of them; `keylock.explainers` has the same methods in torch, which draw the same numbers.
"""

from keylock.iterative.base import Asked, GradientSums, Logits, Loop, run_loop, share_of
from keylock.iterative.integrated_gradients import IntegratedGradientsLoop
from keylock.iterative.kernel_shap import KernelSHAPLoop
from keylock.iterative.lime import LIMELoop
from keylock.iterative.occlusion import OcclusionLoop
from keylock.iterative.registry import LOOPS, make_loop
from keylock.iterative.rise import RISELoop
from keylock.iterative.smooth_grad import SmoothGradLoop

__all__ = [
    "LOOPS",
    "Asked",
    "GradientSums",
    "IntegratedGradientsLoop",
    "KernelSHAPLoop",
    "LIMELoop",
    "Logits",
    "Loop",
    "OcclusionLoop",
    "RISELoop",
    "SmoothGradLoop",
    "make_loop",
    "run_loop",
    "share_of",
]
