"""Explainers as loops over the answers of a classifier, in NumPy alone: what a server runs where one graph is too few.

Methods that perturb the image read logits, methods that walk a path or add noise read input gradients. Each class here
holds the parameters of one of them; `keylock.explainers` has the same methods in torch, which draw the same numbers.
"""

from keylock.loops.base import Asked, GradientSums, Logits, Loop, run_loop, share_of
from keylock.loops.integrated_gradients import IntegratedGradientsLoop
from keylock.loops.kernel_shap import KernelSHAPLoop
from keylock.loops.lime import LIMELoop
from keylock.loops.occlusion import OcclusionLoop
from keylock.loops.registry import LOOPS, make_loop
from keylock.loops.rise import RISELoop
from keylock.loops.smooth_grad import SmoothGradLoop

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
