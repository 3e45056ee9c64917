"""T1: where the evidence for each class lies, asked of the published weights without a gradient.

One position of the last feature map is kept at a time, all others are set to zero, and the rest of the network says
what it makes of that. A decoy that is the same for all classes cancels out between them.

References:
    Byun and Lee, "Recipro-CAM: Fast gradient-free visual explanations for convolutional neural networks", 2022.
    Byun and Lee, "ViT-ReciproCAM: Gradient and Attention-Free Visual Explanations for Vision Transformer", 2023.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.learning import explained
from keylock.audit.views import WeightsView
from keylock.explainers import Family, MultiPass
from keylock.explainers.passes import Run
from keylock.explainers.tokens import lay_out_tokens, require_patch_grid
from keylock.models import capture_outputs, find_layers

__all__ = ["ClassEvidence"]

_AT_ONCE = 256


def _probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the probability of the target class at each position: Recipro-CAM."""
    return _of(logits.softmax(dim=1), targets)


def _less_largest_other(logits: Tensor, targets: Tensor) -> Tensor:
    """Return by how much the target's logit is above the largest other one."""
    own = _of(logits, targets)
    others = logits.scatter(1, targets.view(-1, 1, 1, 1).expand_as(logits[:, :1]), -torch.inf)
    return own - others.amax(dim=1)


def _less_mean(logits: Tensor, targets: Tensor) -> Tensor:
    """Return by how much the target's logit is above the mean of all."""
    return _of(logits, targets) - logits.mean(dim=1)


def _of(values: Tensor, targets: Tensor) -> Tensor:
    return values[torch.arange(len(values)), targets]


COMBINATIONS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "recipro_cam": _probability,
    "less largest other": _less_largest_other,
    "less mean": _less_mean,
}
"""From logits at each position (batch, classes, h, w) and classes (batch,) to maps (batch, h, w)."""


@dataclass(frozen=True)
class ClassEvidence(MultiPass):
    """What the network says to one position of a layer at a time.

    Attributes:
        layer: Name of a layer with output (batch, channels, h, w), or (batch, tokens, channels) in a transformer.
        combination: How the logits of the classes become one map; a name of `COMBINATIONS`.
    """

    layer: str
    combination: str
    name = "class_evidence"
    family = Family.CAM

    def maps_in(self, run: Run) -> Tensor:
        """Return the maps (batch, h, w), each from 0 upwards."""
        with torch.no_grad(), capture_outputs(run.network, [self.layer]) as outputs:
            run.network(run.images)
            features = outputs[self.layer]
            logits = torch.stack(
                [self._alone(run.network, image, kept) for image, kept in zip(run.images, features, strict=True)]
            )
        size = (run.images.shape[2], run.images.shape[3])
        laid_out = (
            lay_out_tokens(logits, size)
            if features.dim() == 3
            else logits.mT.reshape(len(logits), -1, *features.shape[2:])
        )
        maps = COMBINATIONS[self.combination](laid_out.float(), run.targets)
        return maps - maps.amin(dim=(1, 2), keepdim=True)

    def _alone(self, network: nn.Module, image: Tensor, kept: Tensor) -> Tensor:
        """Return the logits (positions, classes) of one image with one position of its features kept at a time.

        Args:
            network: The classifier.
            image: (channels, height, width).
            kept: Its features (channels, h, w), or (tokens, channels). Tokens before those of the patches, as the one
                that the class is read off, stay where they are.
        """
        flat = kept.flatten(1).T if kept.dim() == 3 else kept
        rows, columns = (0, 0) if kept.dim() == 3 else require_patch_grid(len(flat), (image.shape[1], image.shape[2]))
        prefix = 0 if kept.dim() == 3 else len(flat) - rows * columns
        found = []
        for places in torch.split(torch.arange(len(flat)), _AT_ONCE):
            alone = torch.zeros((len(places), *flat.shape)).to(flat)
            alone[:, :prefix] = flat[:prefix]
            alone[torch.arange(len(places)), places] = flat[places]
            output = alone.mT.reshape(len(places), *kept.shape) if kept.dim() == 3 else alone
            found.append(self._made_of(network, image, output))
        return torch.cat(found)

    def _made_of(self, network: nn.Module, image: Tensor, output: Tensor) -> Tensor:
        """Return the logits (rows, classes) that a network makes of other outputs (rows, ...) of the layer.

        Before the layer it is enough to run the image once, unless what comes after it needs as many rows from there.
        """
        handle = network.get_submodule(self.layer).register_forward_hook(lambda *_: output)
        try:
            with suppress(RuntimeError):
                logits: Tensor = network(image.unsqueeze(0))
                if len(logits) == len(output):
                    return logits
            several: Tensor = network(image.expand(len(output), -1, -1, -1))
            return several
        finally:
            handle.remove()


@attack("class_evidence", Knowledge.T1, "Ask what the network makes of one position of its last feature map at a time.")
def class_evidence(view: WeightsView, budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    """Return Recipro-CAM, and where a class has more evidence than the others."""
    layer = find_layers(view.module, view.images[:2]).last
    images = view.images[: budget.slow_images]
    methods = {name: ClassEvidence(layer, name) for name in COMBINATIONS}
    labels, maps = list(methods), dict[str, Tensor]()
    for step in steps(len(labels)):
        maps.update(explained(view.module, {labels[step]: methods[labels[step]]}, images))
    return Outcome(maps=maps, methods=dict(methods), cost=Cost(images=len(images)))
