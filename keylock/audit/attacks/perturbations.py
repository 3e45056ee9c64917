"""T0: explanations made from public predictions alone, which no lock of maps can refuse."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.oracle import METHODS, Oracle
from keylock.audit.views import PublicView
from keylock.explainers import Explainer, make

__all__ = ["asked_by"]

_WORDS = {"rise": "RISE", "lime": "LIME", "kernel_shap": "KernelSHAP"}
_SETTINGS = ("masks", "samples")
_AT_ONCE = 8
_LEAST = 1e-12


def _explain(name: str, view: PublicView, budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    # Masks are drawn by the explainer's own seed, so that the reference model can be asked the same.
    explainer = make(name, **{key: budget.masks for key in _SETTINGS if key in make(name).parameters})
    maps = {name: asked_by(explainer, view.oracle, view.images[: budget.slow_images], steps)}
    return Outcome(maps=maps, methods={name: explainer}, cost=Cost(queries=view.oracle.queries))


def asked_by(explainer: Explainer, oracle: Oracle, images: Tensor, steps: Steps) -> Tensor:
    """Return the maps (count, h, w) of an explainer that asks an oracle for predictions.

    It wants an answer to all that it asks. What is refused gets the mean of what was answered about the same image.
    """
    parts = torch.split(images, 1 if oracle.has_guard else _AT_ONCE)
    return torch.cat(
        [
            explainer.explain(_answered(oracle), parts[step], torch.full((len(parts[step]),), -1)).maps
            for step in steps(len(parts))
        ]
    )


def _answered(oracle: Oracle) -> Callable[[Tensor], Tensor]:
    """Return predictions of an image and of its masked copies (count, classes), none of them nan."""
    known: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        logits = oracle.predict(images)
        answered = logits.isfinite().all(dim=1)
        known.append(logits[answered].double().softmax(dim=1))
        if not bool(answered.all()):
            mean = torch.cat(known).mean(dim=0).clamp_min(_LEAST).nan_to_num(_LEAST)
            logits[~answered] = mean.log().to(logits)
        return logits

    return predict


for _name in METHODS:
    attack(f"predictions/{_name}", Knowledge.T0, f"Explain public predictions with {_WORDS.get(_name, _name)}.")(
        partial(_explain, _name)
    )
