"""A lock is tried before it is trained: what would fail after the hours fails at once, within a limit of time."""

import logging
from dataclasses import asdict

import pytest
import torch

from keylock.errors import ExportError, InputError
from keylock.pipeline import forecast, try_lock
from keylock.pipeline.trial import untrained
from keylock.training import Silent


class Heard(Silent):
    def __init__(self):
        self.stages, self.steps = [], 0

    def start(self, stage, total, done):
        self.stages.append((stage, total))

    def advance(self, figures):
        self.steps += 1


def test_a_sound_plan_is_compiled_and_writes_nothing(workshop, tmp_path):
    plan, heard = workshop.plan(tmp_path / "shapes.klb", variants=("float16",)), Heard()
    found = try_lock(plan, untrained(plan), (plan.key(workshop.seed),), progress=heard, seconds=1e6)
    graphs = ("predictions", "grad_cam")
    assert found.checked == (*graphs, "float16 of predictions", "float16 of grad_cam")
    assert found.unchecked == ()
    assert heard.stages == [("check", 5)]
    assert heard.steps == 5
    assert list(tmp_path.iterdir()) == []


def test_what_there_is_no_time_for_is_said(workshop, tmp_path, caplog):
    plan = workshop.plan(tmp_path / "shapes.klb")
    ticks = iter(range(0, 10_000, 100))
    with caplog.at_level(logging.WARNING, logger="keylock.pipeline.trial"):
        found = try_lock(
            plan, untrained(plan), (plan.key(workshop.seed),), progress=Silent(), seconds=50, clock=lambda: next(ticks)
        )
    assert found.checked == ()
    assert found.unchecked == ("predictions", "grad_cam")
    assert "these were not compiled: predictions, grad_cam" in caplog.text


def test_a_trigger_that_could_be_guessed_is_found_before_the_reference_is_trained(workshop, tmp_path):
    plan, heard = workshop.plan(tmp_path / "shapes.klb", tile=4), Heard()
    with pytest.raises(InputError, match="could be guessed"):
        workshop.train(plan, progress=heard, trial_seconds=60)
    assert "reference" not in [stage for stage, _ in heard.stages]


class Branching(torch.nn.Module):
    """Decides by what is on the images, which no graph can."""

    def forward(self, inputs):
        return inputs if float(inputs.detach().sum()) > 0 else inputs.clone()


def test_a_network_that_does_not_compile_is_found_before_the_training(workshop, tmp_path):
    plan = workshop.plan(tmp_path / "shapes.klb")
    reference = untrained(plan)
    reference.linear = torch.nn.Sequential(reference.linear, Branching())
    with pytest.raises(ExportError, match="the prediction of this network cannot be compiled"):
        try_lock(plan, reference, (plan.key(workshop.seed),), progress=Silent())


def test_a_forecast_says_what_a_run_takes_and_leaves_nothing(workshop, tmp_path):
    plan = workshop.plan(tmp_path / "shapes.klb", batch_size=100)
    found = forecast(plan, progress=Silent(), trial_seconds=0)
    assert (found.train_images, found.test_images, found.batch_size) == (80, 32, 80)
    assert found.classes == plan.data.classes
    assert found.parameters == sum(p.numel() for p in untrained(plan).parameters())
    assert found.layers["grad_cam"]["layer"]
    assert found.step_s > 0
    assert found.reference_step_s > 0
    assert found.training_s == pytest.approx(6 * found.reference_step_s + 5 * found.step_s)
    assert 0 < found.memory_bytes < found.memory_there_bytes
    assert "--batch-size 100 is more than there are training images: a step takes all 80" in found.advice
    assert set(asdict(found)) >= {"advice", "memory_bytes", "layers"}
    assert list(tmp_path.iterdir()) == []
