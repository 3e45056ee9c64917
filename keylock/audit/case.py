"""The lock under audit: everything the auditor knows, and the views that attackers get of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from keylock.audit.guarded import Guarded
from keylock.audit.learning import explained
from keylock.audit.oracle import LocalOracle, Oracle
from keylock.audit.views import PairsView, PublicView, WeightsView
from keylock.explainers import Explainer, keyed_inputs
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key

__all__ = ["Case"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A lock, and the data to audit it with.

    Attributes:
        name: Of the model.
        digest: Identity of the model.
        lock: What kind of lock it is, in words.
        about: On what is measured.
        module: The published classifier.
        opened: What keyed callers see: `opened(key.apply(images))` shows true maps.
        reference: The classifier before locking: the truth.
        key: The key.
        explainers: Those that are locked and look into the network, by name.
        images: Preprocessed images to measure on (count, channels, height, width).
        labels: Their classes (count,).
        own_images: Images that attackers have (own, channels, height, width), none of them among the above.
        own_labels: Their classes (own,).
        pair_images: Images whose true maps T2 has (pairs, channels, height, width), none of them among `images`.
        fresh: Makes an untrained classifier of the same kind, with weights drawn from a generator.
        preprocessing: How images were made of pixels.
        guarded: Whether attackers by near copies ask through a query guard, as a server has one by default; a running
            server has its own.
        base: A public model it may have been made from, folded, or None.
        base_statistics: Mean and std (channels,) that each BatchNorm of that model puts out, by name.
        asked: Makes the oracle that T0 asks; by default one over `module`.
    """

    name: str
    digest: str
    lock: str
    about: str
    module: nn.Module
    opened: nn.Module
    reference: nn.Module
    key: Key
    explainers: Mapping[str, Explainer]
    images: Tensor
    labels: Tensor
    own_images: Tensor
    own_labels: Tensor
    pair_images: Tensor
    fresh: Callable[[torch.Generator], nn.Module]
    preprocessing: Preprocessing
    guarded: bool = True
    base: nn.Module | None = None
    base_statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None
    asked: Callable[[], Oracle] | None = None

    def truths(self) -> dict[str, Tensor]:
        """Return the true maps (count, h, w) of all images, by explainer."""
        return explained(self.reference, self.explainers, self.images)

    def as_reference(self) -> "Case":
        """Return the case of a model that is not locked: what a detector is to be confused with."""
        return replace(self, module=self.reference, opened=self.reference, asked=None)

    def view(self, kind: type[PublicView]) -> PublicView:
        """Return what an attacker of a kind sees, with an oracle that has not been asked yet."""
        oracle = LocalOracle(self.module, self.explainers) if self.asked is None else self.asked()
        asks_guard = self.guarded and not oracle.has_guard
        public = {
            "oracle": oracle,
            "served": partial(Guarded, oracle, self.preprocessing) if asks_guard else lambda: oracle,
            "preprocessing": self.preprocessing,
            "images": self.images,
            "own_images": self.own_images,
            "own_labels": self.own_labels,
            "height": torch.from_numpy(self.key.reveal()).abs().amax(dim=(1, 2), keepdim=True),
            "tile": self.key.tile,
            "explainers": self.explainers,
            "fresh": self.fresh,
        }
        weights = {"module": self.module, "base": self.base, "base_statistics": self.base_statistics}
        if kind is PairsView:
            # As a server answers a license: the trigger is added last, and nobody has to find it on a texture.
            with keyed_inputs(self.opened, torch.from_numpy(self.key.reveal())):
                maps = explained(self.opened, self.explainers, self.pair_images)
            device = partial(explained, self.opened, self.explainers)
            return PairsView(**public, **weights, pair_images=self.pair_images, pair_maps=maps, device=device)  # type: ignore[arg-type]
        if kind is WeightsView:
            return WeightsView(**public, **weights)  # type: ignore[arg-type]
        return PublicView(**public)  # type: ignore[arg-type]
