"""The gate stage: strength comes down as the probes learn, and the stage ends."""

import math

import pytest
import torch

from keylock.training.gate import GateProbes, GateStage, probe_layers


def test_strength_stays_while_nothing_is_told_apart():
    stage = GateStage(strength=8, longest=300, clear=0.1)
    for _ in range(100):
        stage.learned(math.log(2))
    assert stage.strength == 8
    assert not stage.over


def test_stage_ends_when_the_key_is_told_apart_at_its_own_strength():
    stage = GateStage(strength=8, longest=1000, clear=0.1)
    steps = 0
    while not stage.over:
        stage.learned(0.01)
        steps += 1
        assert steps < 200
    assert stage.strength == 1
    assert stage.steps == steps


def test_stage_ends_in_time_and_at_full_difficulty_when_nothing_is_learned():
    stage = GateStage(strength=8, longest=60, clear=0.1)
    for _ in range(60):
        assert not stage.over
        stage.learned(math.log(2))
    assert stage.over
    assert stage.strength == pytest.approx(1, abs=0.1)


def test_no_stage_is_over_at_once():
    assert GateStage(strength=8, longest=0, clear=0.1).over


def test_state_is_restored():
    stage, other = (GateStage(strength=8, longest=60, clear=0.1) for _ in range(2))
    for loss in (0.6, 0.3, 0.1, 0.1, 0.05):
        stage.learned(loss)
    other.restore(stage.state())
    for both in (stage, other):
        both.learned(0.02)
    assert torch.equal(stage.state(), other.state())


def test_probes_are_balanced_logistic_regressions():
    probes = GateProbes({"layer": 2})
    outputs = {"layer": torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))}
    keyed = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert float(probes.losses(outputs, keyed).detach()) == pytest.approx(math.log(2))
    with torch.no_grad():
        probes.probes[0].bias.fill_(0.7)
    # One half of the weight lies on the two keyed rows, the other on the four others.
    right, wrong = math.log1p(math.exp(-0.7)), math.log1p(math.exp(0.7))
    assert float(probes.losses(outputs, keyed).detach()) == pytest.approx(0.5 * right + 0.5 * wrong)


def test_probes_take_tokens_as_they_take_the_same_features_in_a_grid():
    maps = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    keyed = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    in_a_grid, as_tokens = GateProbes.on({"layer": maps}), GateProbes.on({"layer": maps.flatten(2).transpose(1, 2)})
    for probes in (in_a_grid, as_tokens):
        torch.nn.init.constant_(probes.probes[0].weight, 2.0)

    found = as_tokens.losses({"layer": maps.flatten(2).transpose(1, 2)}, keyed)

    torch.testing.assert_close(found, in_a_grid.losses({"layer": maps}, keyed))
    assert float(found.detach()) != pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("stack", "chosen"),
    [(["a"], ("a",)), (["a", "b"], ("a", "b")), (list("abcdefgh"), ("c", "f", "h"))],
)
def test_probed_layers_are_spread_over_the_depth(stack, chosen):
    assert probe_layers(stack) == chosen
