"""What an attacker sees. The auditor makes a view for each kind of attacker; the truth is in none of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keylock.audit.oracle import Oracle
from keylock.explainers import Explainer
from keylock.imaging.preprocessing import Preprocessing

__all__ = ["PairsView", "PublicView", "WeightsView"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicView:
    """T0: the public calls, data of one's own, and what the bundle's description says.

    Attributes:
        oracle: Predictions and keyless maps.
        served: Makes an oracle that answers the same, but refuses near copies as a server's query guard does.
        preprocessing: How images are made of pixels.
        images: Preprocessed images whose true maps are wanted (count, channels, height, width).
        own_images: The attacker's images (own, channels, height, width).
        own_labels: Their classes (own,).
        height: How high the key is on preprocessed images, by channel (channels, 1, 1).
        tile: Side of the key's repeated block, in pixels.
        explainers: The explainers on offer, which the attacker can run on a model of his own.
        fresh: Makes an untrained classifier of the same kind, with weights drawn from a generator.
    """

    oracle: Oracle
    served: Callable[[], Oracle]
    preprocessing: Preprocessing
    images: Tensor
    own_images: Tensor
    own_labels: Tensor
    height: Tensor
    tile: int
    explainers: Mapping[str, Explainer]
    fresh: Callable[[torch.Generator], nn.Module]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightsView(PublicView):
    """T1: the published classifier too.

    Attributes:
        module: The published classifier; attacks work on copies.
        base: A public model it may have been made from, folded as the published one is; None where there is none.
        base_statistics: Mean and std (channels,) that each BatchNorm of that model puts out, by name.
    """

    module: nn.Module
    base: nn.Module | None = None
    base_statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PairsView(WeightsView):
    """T2: some true maps too.

    Attributes:
        pair_images: Images (pairs, channels, height, width); none of them is among `images`.
        pair_maps: Their true maps (pairs, h, w), for each explainer.
        device: Shows what a program with the public bundle shows of pictures (count, channels, height, width), which
            may have a trigger on them: maps (count, h, w), for each explainer.
    """

    pair_images: Tensor
    pair_maps: Mapping[str, Tensor]
    device: Callable[[Tensor], Mapping[str, Tensor]]
