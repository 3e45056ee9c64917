"""Detectors tell an obvious lock from its reference, and a model from itself not at all."""

import pytest
import torch
from test_attacks import audited
from toys import Backdoored, Constant, Toy, make_case

from keylock.audit import ATTACKS, Goal
from keylock.audit.attacks.detection import weight_features
from keylock.audit.scoring import separation


def fresh_toy(generator):
    toy = Toy()
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return toy


OBVIOUS = {
    "detect/faithfulness": (Constant, 0.7),
    "detect/randomisation": (Constant, 0.6),
    "detect/weights": (Constant, 0.52),
    "detect/trigger": (Backdoored, 0.52),
}


def test_every_detector_has_a_row():
    assert {name for name, one in ATTACKS.items() if one.goal is Goal.DETECT} == OBVIOUS.keys()


@pytest.mark.parametrize("name", OBVIOUS)
def test_an_obvious_lock_is_noticed(name, tmp_path):
    kind, least = OBVIOUS[name]
    judged = audited(name, make_case(kind(), fresh=fresh_toy), tmp_path)
    assert judged.finding.separation > least
    assert judged.verdict == "measured"


def test_a_backdoor_has_an_anomalous_trigger(tmp_path):
    notes = audited("detect/trigger", make_case(Backdoored()), tmp_path).finding.notes
    assert notes["anomaly index"] > 2 > notes["anomaly index (reference)"]


@pytest.mark.parametrize("name", OBVIOUS)
def test_a_model_is_not_told_from_itself(name, tmp_path):
    assert audited(name, make_case(Toy(), fresh=fresh_toy), tmp_path).finding.separation == pytest.approx(0.5)


def test_separation_counts_pairs():
    assert separation(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == pytest.approx(3.5 / 4)


def test_weight_features_are_those_of_the_definition():
    rows = weight_features(Toy())
    weight = Toy().mix.weight.detach().flatten().double()
    assert rows.shape == (2, 3)
    assert rows[0, 0] == pytest.approx(float((weight - weight.mean()).square().mean().sqrt().log()))
