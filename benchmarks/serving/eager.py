"""The network in torch, explained by Captum: what the rivals serve."""

import numpy as np
import torch
from captum.attr import LayerGradCam, Saliency
from material import Material
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from keylock.models import create

__all__ = ["Eager", "load_network"]


def load_network(material: Material) -> nn.Module:
    """Load the reference model: evaluation mode, one thread, no gradients of weights."""
    torch.set_num_threads(1)
    about = material.about()
    model = create(about["architecture"], num_classes=about["classes"], image_size=material.side)
    model.load_state_dict(load_file(material.weights))
    return model.eval().requires_grad_(requires_grad=False)


class Eager:
    """Predicts, and explains what was predicted.

    Captum has to be told the class. So an explanation of the predicted class takes a pass to predict it, and another
    one, with its way back, to explain it. Where the caller names the class, the first one is left out.
    """

    def __init__(self, material: Material, *, target_given: bool = False, bfloat16: bool = False) -> None:
        """Load the network.

        Args:
            material: Where it is.
            target_given: Explain classes that are known before, as where the caller names them.
            bfloat16: Compute under autocast to bfloat16, channels last: the fastest torch is on processors.
        """
        self._shape, self._bfloat16 = material.shape, bfloat16
        self._layout = torch.channels_last if bfloat16 else torch.contiguous_format
        self._model = load_network(material).to(memory_format=self._layout)
        layer = self._model.get_submodule(material.about()["layer"])
        self._grad_cam, self._gradient = LayerGradCam(self._model, layer), Saliency(self._model)
        # The classes of the images in their order, as a caller would name them.
        self._given = self._predict(torch.from_numpy(material.images())).argmax(dim=1) if target_given else None

    def answer(
        self, task: str, images: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Return logits (batch, classes) and maps (batch, height, width), as far as they were computed.

        Args:
            task: `predict`, `grad_cam` or `gradient`.
            images: Preprocessed (batch, 3, side, side).
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
            return self._answer(task, images)

    def _answer(
        self, task: str, images: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        inputs = torch.from_numpy(images.reshape(-1, *self._shape)).to(memory_format=self._layout)
        logits = self._predict(inputs) if task == "predict" or self._given is None else None
        found = None if logits is None else logits.float().numpy()
        if task == "predict":
            return found, None
        targets = logits.argmax(dim=1) if logits is not None else self._given[: len(inputs)]
        if task == "grad_cam":
            maps = self._grad_cam.attribute(inputs, target=targets, relu_attributions=True)[:, 0]
        else:
            maps = self._gradient.attribute(inputs, target=targets).mean(dim=1)
        return found, maps.detach().float().numpy()

    def _predict(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self._model(inputs)
        return logits
