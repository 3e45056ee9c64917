"""pytorch-grad-cam: all of its methods, each as it is called by default.

References:
    Gildenblat and contributors, "PyTorch library for CAM methods", 2021.
"""

from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock.explainers.toolkits.base import TOOLKITS, Asked, Method, Reads, Toolkit

__all__ = ["PYTORCH_GRAD_CAM"]

_CONCEPTS: Final = 5
_OTHERS: Final = 3
_SCALES: Final = 4
"""How many scales SESS takes, of the 12 it has by default: a hundred patches of each image are what takes long."""


def _targets(asked: Asked) -> list[Any]:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    return [ClassifierOutputTarget(target) for target in asked.targets.tolist()]


def _map(maps: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.asarray(maps, dtype=np.float32))


def _class_of(kind: str) -> Any:  # noqa: ANN401
    import pytorch_grad_cam

    return getattr(pytorch_grad_cam, kind)


def _cam(kind: str, asked: Asked, **options: object) -> Tensor:
    """Ask a method of layers and a class."""
    made = _class_of(kind)(asked.network, asked.modules, reshape_transform=asked.laid_out, **options)
    return _map(made(asked.images.clone().requires_grad_(), _targets(asked)))


def _one_by_one(kind: str, asked: Asked, **options: object) -> Tensor:
    """Ask for one image at a time: the method holds a masked copy of the image for every channel."""
    rows = zip(torch.split(asked.images, 1), torch.split(asked.targets, 1), strict=True)
    return torch.cat(
        [_cam(kind, Asked(asked.network, image, target, asked.layers), **options) for image, target in rows]
    )


def _ablation(asked: Asked) -> Tensor:
    with torch.no_grad():
        shapes: list[int] = []
        handle = asked.modules[0].register_forward_hook(lambda _module, _inputs, output: shapes.append(output.dim()))
        asked.network(asked.images[:1])
        handle.remove()
    layer = _class_of("AblationLayerVit" if shapes[0] == 3 else "AblationLayer")()
    return _cam("AblationCAM", asked, ablation_layer=layer)


def _finer(asked: Asked) -> Tensor:
    """Compare the class with the three whose logits are nearest, as the method does for the predicted one."""
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    with torch.no_grad():
        logits = asked.network(asked.images)
    own = logits.gather(1, asked.targets.unsqueeze(1))
    distances = (logits - own).abs().scatter(1, asked.targets.unsqueeze(1), torch.inf)
    nearest = distances.argsort(dim=1)[:, : min(_OTHERS, logits.shape[1] - 1)]
    wanted = [
        FinerWeightedTarget(target, others, 1.0)
        for target, others in zip(asked.targets.tolist(), nearest.tolist(), strict=True)
    ]
    return _map(
        _class_of("FinerCAM")(asked.network, asked.modules, asked.laid_out)(
            asked.images.clone().requires_grad_(), wanted
        )
    )


def _shapley(asked: Asked) -> Tensor:
    """Forget what was recorded: the method would detach it in place when it is collected, which views forbid."""
    made = _class_of("ShapleyCAM")(asked.network, asked.modules, reshape_transform=asked.laid_out)
    try:
        return _map(made(asked.images.clone(), _targets(asked)))
    finally:
        made.activations_and_grads.activations, made.activations_and_grads.gradients = [], []


def _full_grad(asked: Asked) -> Tensor:
    made = _class_of("FullGrad")(asked.network, [])
    return _map(made(asked.images.clone(), _targets(asked)))


def _guided(asked: Asked) -> Tensor:
    """Take the size of the sum over channels of each image's guided gradient."""
    made = _class_of("GuidedBackpropReLUModel")(asked.network)
    rows = zip(torch.split(asked.images, 1), asked.targets.tolist(), strict=True)
    return _map(np.stack([np.abs(made(image.clone(), target).sum(axis=2)) for image, target in rows]))


def _factors(asked: Asked) -> Tensor:
    """Show of the concepts that all images share the one that an image has most of."""
    made = _class_of("DeepFeatureFactorization")(asked.network, asked.modules[0], reshape_transform=asked.laid_out)
    _, found = made(asked.images, n_components=_CONCEPTS)
    return _map(np.stack([concepts[concepts.mean(axis=(1, 2)).argmax()] for concepts in found]))


_QUICK: Final = ("GradCAM", "HiResCAM", "LayerCAM", "EigenCAM", "EigenGradCAM", "FEM")
_LONGER: Final = (
    "GradCAMPlusPlus",
    "GradCAMElementWise",
    "XGradCAM",
    "KPCA_CAM",
    "SegEigenCAM",
    "RandomCAM",
)
_METHODS: Final = {
    **{name: Method(Reads.LAYER, partial(_cam, name), name in _QUICK) for name in (*_QUICK, *_LONGER)},
    "FinerCAM": Method(Reads.LAYER, _finer, quick=True),
    "ShapleyCAM": Method(Reads.LAYER, _shapley, quick=True),
    "ScoreCAM": Method(Reads.LAYER, partial(_one_by_one, "ScoreCAM")),
    "AblationCAM": Method(Reads.LAYER, _ablation),
    "SESS": Method(Reads.LAYER, partial(_one_by_one, "SESS", num_scales=_SCALES)),
    "DeepFeatureFactorization": Method(Reads.LAYER, _factors),
    "RefineCAM": Method(Reads.STACK, partial(_cam, "RefineCAM"), quick=True),
    "FullGrad": Method(Reads.INPUT, _full_grad, quick=True),
    "GuidedBackpropReLUModel": Method(Reads.INPUT, _guided),
}
_LEFT_OUT: Final = {
    "AblationLayer": "a part of AblationCAM",
    "AblationLayerVit": "a part of AblationCAM, for transformers",
    "AblationLayerFasterRCNN": "a part of AblationCAM, for detectors",
    "ActivationsAndGradients": "records layers for the methods",
    "run_dff_on_image": "draws DeepFeatureFactorization, which is attacked",
}

PYTORCH_GRAD_CAM = Toolkit("pytorch_grad_cam", "grad-cam", _METHODS, _LEFT_OUT)
"""What pytorch-grad-cam exports."""

TOOLKITS["pytorch_grad_cam"] = PYTORCH_GRAD_CAM
