"""T0: near copies of pictures asked about through the query guard, plainly, in disguise, and around it."""

import dataclasses
from functools import partial

import numpy as np
import torch

from keylock.audit.budgets import Budget
from keylock.audit.contract import ALL_SUITES, ATTACKS, LONG_SUITES, Cost, Knowledge, Outcome, Steps, attack
from keylock.audit.copies import ATTACKERS, FITS, METHODS_OF, Pixels, ask_about
from keylock.audit.oracle import Oracle
from keylock.audit.views import PublicView
from keylock.explainers import make

__all__: list[str] = []

_QUICK = {"occlusion", "rise", "exposure_labels", "learning"}
_SETTINGS = ("masks", "samples")
_PATIENCE = 20
"""Refusals in a row after which a picture is given up."""

_SHORTER = 4
"""How much shorter climbs are than without a guard: whoever is refused learns nothing by going on."""

_CLIMBS = {"hill": "flipping signs and asking whether the maps move more", "nes": "along estimated gradients (NES)"}


def _ask(name: str, view: PublicView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    oracle, pixels, attacker = view.served(), Pixels(view.preprocessing), ATTACKERS[name]
    images = view.images[: budget.copied_images]
    asked = ask_about(
        oracle,
        images,
        attacker,
        copies=budget.picture_copies,
        others=pixels.pictures(view.own_images),
        pixels=pixels,
        generator=np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator))),
        patience=_PATIENCE,
        steps=steps,
    )
    maps = {fit: torch.from_numpy(np.stack([one.map_by(fit) for one in asked])).float() for fit in FITS}
    method = METHODS_OF.get(attacker.masks)
    methods = {}
    if method is not None:
        settings = {key: budget.masks for key in _SETTINGS if key in make(method).parameters}
        methods = dict.fromkeys(maps, make(method, **settings))
    return Outcome(maps=maps, methods=methods, cost=Cost(queries=oracle.queries), notes=_told(oracle, len(images)))


def _told(oracle: Oracle, pictures: int) -> dict[str, int]:
    return {"pictures": pictures, **oracle.tally.notes()}


def _climb(name: str, view: PublicView, budget: Budget, generator: torch.Generator, steps: Steps) -> Outcome:
    oracle = view.served()
    spend = dataclasses.replace(budget, climb_steps=max(1, budget.climb_steps // _SHORTER))
    found = ATTACKS[f"key_climb/{name}"].run(dataclasses.replace(view, oracle=oracle), spend, generator, steps)
    return dataclasses.replace(found, notes=_told(oracle, budget.climb_images))


for _name, _attacker in ATTACKERS.items():
    attack(
        f"near_copies/{_name}",
        Knowledge.T0,
        _attacker.summary,
        suites=ALL_SUITES if _name in _QUICK else LONG_SUITES,
    )(partial(_ask, _name))
for _name, _what in _CLIMBS.items():
    attack(
        f"near_copies/climb_{_name}",
        Knowledge.T0,
        f"Climb to the key through the query guard, {_what}.",
        suites=LONG_SUITES,
    )(partial(_climb, _name))
