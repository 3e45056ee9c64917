"""Saliency methods under one contract: a model, images and target classes in, logits and maps out.

`explain_many` runs any mix of them. Those with `differentiable` can be trained through with `create_graph=True`,
which is how a lock is made; those of the perturbation family explain any function from images to logits.
"""

from keylock.explainers.attention_rollout import AttentionRollout
from keylock.explainers.base import Explained, Explainer, Family, MultiPass, SinglePass
from keylock.explainers.black_box import LIME, RISE, BlackBox, KernelSHAP, Occlusion
from keylock.explainers.class_activations import ClassActivations
from keylock.explainers.grad_cam import AtLayer, GradCAM
from keylock.explainers.grad_cam_pp import GradCAMPlusPlus
from keylock.explainers.gradient import Gradient
from keylock.explainers.guided_backprop import GuidedBackprop
from keylock.explainers.input_x_gradient import InputXGradient
from keylock.explainers.integrated_gradients import IntegratedGradients
from keylock.explainers.keyed import keyed_inputs
from keylock.explainers.layer_cam import LayerCAM
from keylock.explainers.lrp import LRP
from keylock.explainers.passes import Classifier, Pass, Run
from keylock.explainers.registry import EXPLAINERS, check_lockable, expand_names, explainer_kind, make, make_for
from keylock.explainers.running import explain_many
from keylock.explainers.smooth_grad import SmoothGrad
from keylock.explainers.visual_backprop import VisualBackProp

__all__ = [
    "EXPLAINERS",
    "LIME",
    "LRP",
    "RISE",
    "AtLayer",
    "AttentionRollout",
    "BlackBox",
    "ClassActivations",
    "Classifier",
    "Explained",
    "Explainer",
    "Family",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GuidedBackprop",
    "InputXGradient",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "MultiPass",
    "Occlusion",
    "Pass",
    "Run",
    "SinglePass",
    "SmoothGrad",
    "VisualBackProp",
    "check_lockable",
    "expand_names",
    "explain_many",
    "explainer_kind",
    "keyed_inputs",
    "make",
    "make_for",
]
