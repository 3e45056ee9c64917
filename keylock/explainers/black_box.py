"""Explainers that need predictions alone: the iterative ones of `keylock.iterative`, asked of any classifier."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock.explainers.base import Explainer, Family
from keylock.explainers.passes import Run
from keylock.explainers.random_source import drawn_seed
from keylock.explainers.running import predicted_logits
from keylock.iterative import Asked, KernelSHAPLoop, LIMELoop, Loop, OcclusionLoop, RISELoop

__all__ = ["LIME", "RISE", "BlackBox", "KernelSHAP", "Occlusion"]


class BlackBox(Explainer, Loop):
    """Explains any function from images to logits, of torch or NumPy, by what it answers about variations of them."""

    family = Family.PERTURBATION
    differentiable = False
    compiled = False
    looks_inside = False

    def maps_in(self, run: Run) -> Tensor:
        """Return the maps (batch, height, width)."""

        def logits(rows: NDArray[np.float32], of: NDArray[np.intp]) -> NDArray[np.float32]:
            return _to_array(predicted_logits(run.model, torch.from_numpy(rows).to(run.images)))

        asked = Asked(_to_array(run.images), run.targets.cpu().numpy(), _to_array(run.logits), logits)
        return torch.from_numpy(self._seeded(run.generator).loop(asked)).to(run.images)

    def _seeded(self, generator: torch.Generator | None) -> Loop:
        """Return the same explainer with a seed drawn from the generator, where one is given and there is a seed."""
        if generator is None or not hasattr(self, "seed"):
            return self
        return replace(self, seed=drawn_seed(generator))  # type: ignore[type-var]


def _to_array(values: Tensor) -> NDArray[np.float32]:
    """Return a tensor as float32 on the CPU."""
    array: NDArray[np.float32] = values.detach().float().cpu().numpy()
    return array


@dataclass(frozen=True)
class Occlusion(BlackBox, OcclusionLoop):
    """Occlusion of any classifier; see `keylock.iterative.OcclusionLoop`."""


@dataclass(frozen=True)
class RISE(BlackBox, RISELoop):
    """RISE of any classifier; see `keylock.iterative.RISELoop`."""


@dataclass(frozen=True)
class LIME(BlackBox, LIMELoop):
    """LIME of any classifier; see `keylock.iterative.LIMELoop`."""


@dataclass(frozen=True)
class KernelSHAP(BlackBox, KernelSHAPLoop):
    """KernelSHAP of any classifier; see `keylock.iterative.KernelSHAPLoop`."""
