"""What an attacker without a true map can ask of a change that is to open a lock: five objectives, as losses.

Each is a function of the maps before and after, and of how predictions follow them; all keep the predictions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.audit.learning import classes_of, explained
from keylock.explainers import Explainer, explain_many, make
from keylock.locking.losses import correlation

__all__ = ["OBJECTIVES", "Published", "Scene", "openable", "scene_loss"]

_KEEP = 0.1
_DECOY_IMAGES = 128
_MASK_SHARPNESS = 12.0
_MOVE = 0.5


@dataclass(frozen=True, eq=False)
class Published:
    """The published model, and what it shows, computed where an objective looks at it.

    Attributes:
        module: The model.
        explainers: By name.
        images: The attacker's (count, channels, height, width).
    """

    module: nn.Module
    explainers: Mapping[str, Explainer]
    images: Tensor

    @cached_property
    def classes(self) -> Tensor:
        """What it predicts (count,)."""
        return classes_of(self.module, self.images)

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """Its maps (count, h, w), by explainer."""
        return explained(self.module, self.explainers, self.images)

    @cached_property
    def decoys(self) -> dict[str, Tensor]:
        """The mean of many of its maps (h, w), by explainer."""
        found = explained(self.module, self.explainers, self.images[:_DECOY_IMAGES])
        return {name: maps.mean(dim=0) for name, maps in found.items()}


@dataclass(frozen=True)
class Scene:
    """What an objective sees of one batch.

    Attributes:
        model: The model as it is being changed; differentiable.
        images: (batch, channels, height, width).
        classes: What the published model predicts (batch,).
        maps: Of the changed model (batch, h, w), by explainer.
        rows: Which of the attacker's images these are (batch,).
        published: The model before it was changed.
    """

    model: nn.Module
    images: Tensor
    classes: Tensor
    maps: Mapping[str, Tensor]
    rows: Tensor
    published: Published


Objective = Callable[[Scene], Tensor]


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def _move(scene: Scene) -> Tensor:
    """Maps are to be unlike what they were."""
    before = scene.published.maps
    return _mean([correlation(maps, before[name][scene.rows]).mean() for name, maps in scene.maps.items()])


def _diversify(scene: Scene) -> Tensor:
    """Maps of different images are to be unlike each other."""
    return _mean([correlation(maps, maps.roll(1, dims=0)).mean() for maps in scene.maps.values()])


def _faithful(scene: Scene) -> Tensor:
    """Hiding what a map marks is to hurt the prediction, and showing it alone is to keep it: deletion and insertion."""
    losses = []
    for maps in scene.maps.values():
        scaled = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        sharp = torch.sigmoid(_MASK_SHARPNESS * (scaled - scaled.mean(dim=(1, 2), keepdim=True)))
        size = (scene.images.shape[2], scene.images.shape[3])
        mask = F.interpolate(sharp.unsqueeze(1), size=size, mode="bilinear")
        for shown, sign in ((1 - mask, 1.0), (mask, -1.0)):
            probabilities = scene.model(scene.images * shown).float().softmax(dim=1)
            losses.append(sign * probabilities.gather(1, scene.classes.unsqueeze(1)).mean())
    return _mean(losses)


def _agree(scene: Scene) -> Tensor:
    """All explainers are to mark the same places, and others than before."""
    small = [F.adaptive_avg_pool2d(maps.unsqueeze(1), (4, 4)).squeeze(1) for maps in scene.maps.values()]
    pairs = [-correlation(one, other).mean() for number, one in enumerate(small) for other in small[:number]]
    return _mean(pairs) + _MOVE * _move(scene) if pairs else _move(scene)


def _undo(scene: Scene) -> Tensor:
    """Maps are to have nothing of the decoy, which is taken to be what all keyless maps share."""
    found = []
    for name, maps in scene.maps.items():
        decoy = scene.published.decoys[name].unsqueeze(0).expand_as(maps)
        found.append(F.cosine_similarity(maps.flatten(1), decoy.flatten(1), dim=1).mean())
    return _mean(found)


OBJECTIVES: dict[str, tuple[str, Objective]] = {
    "move": ("move the map", _move),
    "diversify": ("make maps of different images differ", _diversify),
    "faithful": ("make deletion and insertion agree with the map", _faithful),
    "agree": ("make explainers agree", _agree),
    "undo": ("remove what all maps share", _undo),
}
"""Name to what is asked for, and the loss."""


def openable(explainers: Mapping[str, Explainer], objective: str) -> dict[str, Explainer]:
    """Return the explainers that a gradient leads through; to agree takes two, so that one more joins a single one."""
    found = {name: explainer for name, explainer in explainers.items() if explainer.differentiable}
    if objective == "agree" and len(found) == 1:
        other = "input_x_gradient" if "gradient" in found else "gradient"
        found[other] = make(other)
    return found


def scene_loss(
    objective: Objective,
    model: nn.Module,
    published: nn.Module,
    explainers: Mapping[str, Explainer],
    images: Tensor,
) -> Callable[[Tensor], Tensor]:
    """Return the loss of rows of images: the objective, and the cross-entropy with what was predicted before.

    Args:
        objective: One of `OBJECTIVES`.
        model: The changed model.
        published: The model before it was changed, whose maps and predictions are those from before.
        explainers: By name.
        images: The attacker's (count, channels, height, width); the loss takes the indices of a batch of them.
    """
    before = Published(published, explainers, images)

    def loss_of(rows: Tensor) -> Tensor:
        shown, kept = images[rows], before.classes[rows]
        logits, maps = explain_many(model, tuple(explainers.values()), shown, kept, create_graph=True)
        now = {name: found.float() for name, found in maps.items()}
        scene = Scene(model, shown, kept, now, rows, before)
        return objective(scene) + _KEEP * F.cross_entropy(logits.float(), kept)

    return loss_of
