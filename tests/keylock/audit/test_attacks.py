"""Every attack wins against a lock that is weak in its way. A new attack is one row here."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from toys import (
    BUDGET,
    Brittle,
    Constant,
    Folded,
    Keyed,
    Kinked,
    Mirrored,
    Normalised,
    OffManifold,
    Soft,
    Starved,
    Tiny,
    Toy,
    Wavering,
    draw,
    make_case,
    make_key,
)

from keylock.audit import ATTACKS, AuditPlan, Goal, run_audit
from keylock.audit.copies import ATTACKERS
from keylock.explainers import EXPLAINERS, BlackBox, Gradient
from keylock.training import Silent


def weak(kind, **changes):
    return lambda: make_case(kind(), **changes)


def keyed(tile=4, **changes):
    key = make_key(tile)
    return make_case(Keyed(key), opened=Keyed(key).eval(), key=key, **changes)


def openly(name):
    """Near copies are asked about without a query guard."""
    # A label tells something where it changes: on pictures that are told apart by little.
    bright = 2.0 if ATTACKERS[name].scores else 0.1 if name == "signs_labels" else 0.3
    return weak(Constant, guarded=False, images=draw(24, 0, bright=bright)[0])


def off_manifold():
    true = OffManifold(locked=False).eval()
    return make_case(
        OffManifold(locked=True), opened=true, reference=true, explainers={"gradient": Gradient()}, border=3
    )


PREDICTIONS = [name for name, kind in EXPLAINERS.items() if issubclass(kind, BlackBox)]
SEARCHES = [f"key_search/{goal}" for goal in ("move", "diversify", "faithful", "agree", "undo")]

# Attack, the lock it must win against, how close it must come at least.
WINS = {
    "keyless": (weak(Toy), 0.99),
    "other_classes": (weak(Constant), 0.9),
    **{f"average/{name}": (weak(Wavering), 0.6) for name in ("noise", "shift", "jpeg", "blur", "resize")},
    "average/flip": (weak(Mirrored), 0.9),
    **{f"predictions/{name}": (weak(Constant), 0.5) for name in PREDICTIONS},
    "key_guess": (lambda: keyed(tile=2), 0.8),
    "key_climb/hill": (keyed, 0.5),
    "key_climb/nes": (keyed, 0.8),
    **{f"near_copies/{name}": (openly(name), 0.4 if one.scores else 0.2) for name, one in ATTACKERS.items()},
    **{f"near_copies/climb_{name}": (partial(keyed, guarded=False), 0.5) for name in ("hill", "nes")},
    "surrogate/few": (weak(Constant), 0.4),
    "surrogate/many": (weak(Constant), 0.4),
    "distillation": (weak(Constant), 0.4),
    "explainers": (weak(Constant), 0.9),
    "class_evidence": (weak(Constant), 0.9),
    "predictions/aise": (weak(Constant), 0.5),
    "aise": (weak(Constant), 0.5),
    **{f"reader/pairs_{count}": (weak(Constant), 0.8) for count in (1, 4, 16, "all")},
    "reader/own_lock": (weak(Constant), 0.5),
    "captum/input": (weak(Constant), 0.4),
    "captum/last": (weak(Constant), 0.9),
    "captum/first": (weak(Constant), 0.9),
    "pytorch_grad_cam/input": (weak(Constant), 0.4),
    "pytorch_grad_cam/last": (weak(Constant), 0.9),
    "pytorch_grad_cam/first": (weak(Constant), 0.9),
    "pytorch_grad_cam/stack": (weak(Constant), 0.4),
    **{f"activations/softplus_{beta}": (weak(Kinked), 0.9) for beta in (1, 3)},
    "activations/relu": (weak(Soft), 0.9),
    "tangent_space": (off_manifold, 0.5),
    "base_model": (weak(Constant, base=Toy().eval()), 0.99),
    "batch_norm/reestimated": (weak(Normalised), 0.9),
    "batch_norm/query": (weak(Normalised), 0.9),
    "batch_norm/channels": (weak(Folded), 0.9),
    "batch_norm/base": (weak(Folded, base_statistics={"mix": (torch.zeros(3), torch.ones(3))}), 0.9),
    "quantise/int8": (weak(Tiny), 0.9),
    "quantise/fp16": (weak(Tiny), 0.9),
    "prune/70": (weak(Tiny), 0.9),
    **{f"weight_noise/{size}": (weak(Brittle), 0.7) for size in ("0.03", "0.1", "0.3")},
    **{f"fine_tune/{size}_{rate}": (weak(Starved), 0.7) for size in ("few", "many") for rate in ("0.01", "0.03")},
    "fine_prune": (weak(Starved), 0.4),
    **{f"{name}_tile": (keyed, 0.8) for name in SEARCHES},
    **{f"{name}_full": (keyed, 0.6) for name in SEARCHES},
    "low_rank/cut_1": (weak(Constant), 0.9),
    "low_rank/prune": (weak(Constant), 0.9),
    "low_rank/search_diversify": (weak(Constant), 0.6),
    "low_rank/search_faithful": (weak(Constant), 0.4),
    "low_rank/search_undo": (weak(Constant), 0.32),
    "low_rank/tune": (weak(Starved), 0.7),
    "pairs/regression": (weak(Constant), 0.8),
    "pairs/average": (weak(Constant), 0.6),
    "pairs/tuning": (weak(Starved), 0.6),
    **{f"pairs/tuning_{count}": (weak(Starved), 0.6) for count in (4, 16)},
    # The device of this toy opens for whatever is on the picture.
    "pairs/other_key": (weak(Constant), 0.9),
    "pairs/key_search_tile": (keyed, 0.8),
    "pairs/key_search_full": (keyed, 0.6),
}
# The same attacks with settings that these toys do not need.
SETTINGS = {
    "captum/middle",
    "pytorch_grad_cam/middle",
    "pairs/tuning_1",
    *(f"activations/softplus_{beta}" for beta in (10, 30)),
    *(f"prune/{share}" for share in (10, 30, 50)),
    *(f"low_rank/cut_{count}" for count in (2, 4, 8)),
    *(f"fine_tune/{size}_0.001" for size in ("few", "many")),
}


# Attacks that have further to go than others.
PATIENCE = {
    "key_guess": {"guesses": 200},
    "key_search/faithful_full": {"search_steps": 200},
    "near_copies/signs": {"picture_copies": 400},
    "near_copies/signs_labels": {"picture_copies": 800},
    **{f"near_copies/climb_{name}": {"climb_steps": 240} for name in ("hill", "nes")},
    **{f"pairs/tuning{count}": {"search_steps": 300} for count in ("", "_4", "_16")},
    "low_rank/tune": {"steps": 300},
    **{f"low_rank/search_{goal}": {"search_steps": 200} for goal in ("diversify", "faithful", "undo")},
}


def audited(name, case, folder):
    plan = AuditPlan(out=folder, suite="quick", only=(name,), budget=replace(BUDGET, **PATIENCE.get(name, {})))
    [judged] = run_audit(case, plan, progress=Silent()).judged
    return judged


def test_every_attack_has_a_row():
    recovering = {name for name, one in ATTACKS.items() if one.goal is Goal.RECOVER}
    assert recovering == WINS.keys() | SETTINGS
    assert not WINS.keys() & SETTINGS


@pytest.mark.parametrize("name", WINS)
def test_attack_wins_against_a_weak_lock(name, tmp_path):
    make, least = WINS[name]
    case = make()
    judged = audited(name, case, tmp_path)
    assert judged.finding.status == "done", judged.finding.reason
    found = max(recovery.found for recovery in judged.finding.recoveries)
    assert found > least
    if name != "keyless":
        [before] = audited("keyless", case, tmp_path / "before").finding.recoveries
        assert found > before.found + 0.15
