"""An audit asks a real server with its query guard as it is by default: what is refused ends no attack."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from near_copies import PREPROCESSING, SIDE, picture
from torch import nn

from keylock.audit import ATTACKS, AuditPlan, Case, ServerOracle, run_audit
from keylock.audit.answered import Answer
from keylock.audit.attacks.guesses import merit_of
from keylock.audit.budgets import budget_of
from keylock.audit.views import PublicView
from keylock.explainers import Gradient
from keylock.training import Silent
from keylock.trigger.keys import Key
from keylock_client import Client

BUDGET = replace(
    budget_of("quick"),
    images=6,
    slow_images=2,
    own_images=12,
    few_images=8,
    guesses=3,
    climb_steps=4,
    climb_images=2,
    copies=3,
    masks=60,
    copied_images=2,
    picture_copies=20,
    few_predictions=8,
    predictions=12,
    few_steps=2,
    steps=2,
)
REFUSED = (
    *(f"predictions/{name}" for name in ("occlusion", "rise", "aise")),
    *(f"near_copies/{name}" for name in ("occlusion", "occlusion_labels", "batches", "callers", "climb_nes")),
    *("key_climb/hill", "key_climb/nes"),
)
ASKED = (
    *("keyless", "average/noise", "surrogate/few", "detect/faithfulness", "key_guess"),
    *("near_copies/learning", "near_copies/windows", *REFUSED),
)


class Quadrants(nn.Module):
    """What the served graph computes: the means of the quadrants."""

    def forward(self, images):
        halves = images.mean(dim=1).reshape(len(images), 2, SIDE // 2, 2, SIDE // 2)
        return halves.mean(dim=(2, 4)).flatten(1)


@pytest.fixture
def target(pictures, vendor, tmp_path):
    """A `keylock serve` with defaults in a process of its own."""
    ready, log = tmp_path / "ready", tmp_path / "log"
    command = [sys.executable, "-m", "keylock", "serve", str(pictures.bundle), "--keyless", "--port", "0"]
    command += ["--issuer", str(vendor.issuer_file), "--ready-file", str(ready)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KEYLOCK_")}
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written, env=environment, cwd=tmp_path)
    until = time.monotonic() + 120
    while not ready.is_file():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    yield ready.read_text().strip()
    process.terminate()
    process.wait()


@pytest.fixture
def case(vendor):
    """The served model as an auditor knows it."""
    images = torch.from_numpy(np.stack([PREPROCESSING(picture(seed)) for seed in range(18)]))
    model = Quadrants().eval()
    labels = model(images).argmax(dim=1)
    return Case(
        name="pictures",
        digest="sha256:" + "0" * 64,
        lock="none",
        about="drawn pictures",
        module=model,
        opened=model,
        reference=model,
        key=Key.derive(vendor.seed, shape=PREPROCESSING.shape, std=PREPROCESSING.std),
        explainers={"brightness": Gradient()},
        images=images[:6],
        labels=labels[:6],
        own_images=images[6:],
        own_labels=labels[6:],
        pair_images=images[6:8],
        fresh=lambda _: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 4)),
        preprocessing=PREPROCESSING,
    )


def asked_at(case, client, another=None):
    return replace(case, asked=lambda: ServerOracle(client, another))


def test_no_attack_by_queries_ends_with_an_error(target, case, tmp_path):
    with Client(target) as client:
        plan = AuditPlan(out=tmp_path / "report", suite="full", only=ASKED, budget=BUDGET)
        judged = run_audit(asked_at(case, client, lambda: Client(target)), plan, progress=Silent()).judged
    findings = {one.finding.attack: one.finding for one in judged}
    assert not [(name, one.reason) for name, one in findings.items() if one.status == "error"]
    # A running server's windows are not waited for, and a detector has nothing to tell of where all is refused.
    assert {name for name, one in findings.items() if one.status == "skipped"} <= {
        "near_copies/windows",
        "detect/faithfulness",
    }
    refused = {name for name, one in findings.items() if one.notes.get("refused", 0) > 0}
    assert refused >= set(REFUSED)
    for name in REFUSED:
        assert findings[name].recoveries
        # What was asked about before is answered again; a climb may be refused from the first step on.
        assert findings[name].cost["queries"] > 0 or "climb" in name


def test_an_attack_goes_on_with_labels_where_scores_are_refused(target, case):
    view = asked_at(case, Client(target)).view(PublicView)
    copies = case.images[:1].repeat(60, 1, 1, 1)
    for place, copy in enumerate(copies):
        copy[:, place % 8 * 4 : place % 8 * 4 + 4, place // 8 * 4 : place // 8 * 4 + 4] = 0
    found = view.oracle.ask(copies)
    kinds = found.kinds.tolist()
    assert set(kinds) == set(Answer)
    assert kinds.index(Answer.SCORES) < kinds.index(Answer.LABEL) < kinds.index(Answer.REFUSED)
    wanted = case.module(copies)
    answered = found.kinds != Answer.REFUSED
    torch.testing.assert_close(
        found.logits[found.kinds == Answer.SCORES], wanted[found.kinds == Answer.SCORES], rtol=1e-4, atol=1e-5
    )
    assert torch.equal(found.logits[answered].argmax(dim=1), wanted[answered].argmax(dim=1))
    assert found.logits[~answered].isnan().all()


def test_a_climb_that_is_refused_finds_no_merit(target, case):
    view = asked_at(case, Client(target)).view(PublicView)
    merit = merit_of(view, 2)
    offset = torch.zeros_like(case.images[0])
    merits = []
    for place in range(12):
        offset[0, place, :] = 0.05
        merits += merit(offset.unsqueeze(0))
    assert all(np.isfinite(merits))
    assert merits[-1] == 0
    assert view.oracle.tally.refused > 0


def test_another_caller_is_no_other_to_the_guard(target, case):
    view = asked_at(case, Client(target), lambda: Client(target)).view(PublicView)
    budget = replace(BUDGET, copied_images=1, picture_copies=30)

    def refused(name):
        outcome = ATTACKS[f"near_copies/{name}"].run(
            view, budget, torch.Generator().manual_seed(0), lambda count: iter(range(count))
        )
        return outcome.notes["refused"]

    assert refused("callers") > 0
