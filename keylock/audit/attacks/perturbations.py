"""T0: explanations made from public predictions alone, which no lock of maps can refuse."""

from functools import partial

import torch

from keylock.audit.budgets import Budget
from keylock.audit.contract import Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.oracle import METHODS
from keylock.audit.views import PublicView
from keylock.explainers import make

_WORDS = {"rise": "RISE", "lime": "LIME", "kernel_shap": "KernelSHAP"}
_SETTINGS = ("masks", "samples")
_AT_ONCE = 8


def _explain(name: str, view: PublicView, budget: Budget, _generator: torch.Generator, steps: Steps) -> Outcome:
    # Masks are drawn by the explainer's own seed, so that the reference model can be asked the same.
    explainer = make(name, **{key: budget.masks for key in _SETTINGS if key in make(name).parameters})
    parts = torch.split(view.images[: budget.slow_images], _AT_ONCE)
    found = []
    for step in steps(len(parts)):
        whatever = torch.full((len(parts[step]),), -1)
        found.append(explainer.explain(view.oracle.predict, parts[step], whatever).maps)
    return Outcome(maps={name: torch.cat(found)}, methods={name: explainer}, cost=Cost(queries=view.oracle.queries))


for _name in METHODS:
    attack(f"predictions/{_name}", Knowledge.T0, f"Explain public predictions with {_WORDS.get(_name, _name)}.")(
        partial(_explain, _name)
    )
