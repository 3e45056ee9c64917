"""Training the reference: it learns, and an interrupted run ends where an uninterrupted one does."""

import numpy as np
import pytest
import torch
from torch import nn

from keylock.data.batches import Batches
from keylock.data.sets import ImageSet
from keylock.errors import NonFiniteLossError, ResumeError
from keylock.imaging.preprocessing import Preprocessing
from keylock.training import ReferenceSettings, Silent, train_reference
from keylock.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("precision")


RUN = ("device", "progress", "checkpoint", "resume")
"""What is about a run and not about how it trains."""


class Recorder(Silent):
    """Keeps the losses; may interrupt."""

    def __init__(self, stop_after=None):
        self.losses, self.stop_after = [], stop_after

    def advance(self, figures):
        self.losses.append(figures["cross-entropy"])
        if len(self.losses) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def train(tmp_path):
    labels = np.arange(48) % 3
    images = np.random.default_rng(0).integers(0, 90, (48, 12, 12, 3), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, 3:9, 3:9, label] += 160
    data = ImageSet(images, labels)
    preprocessing = Preprocessing(size=(12, 12), mean=(0.5,) * 3, std=(0.25,) * 3)

    def run(**options):
        torch.manual_seed(0)
        # Dropout draws from the global generator, BatchNorm changes with every pass: both must not show.
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
        torch.manual_seed(options.pop("global_seed", 1))
        batches = options.pop("batches", None) or Batches(data, preprocessing, batch_size=16, seed=2)
        settings = {"steps": 12, "magnitude": torch.full((3, 12, 12), 0.1), "tile": 4, "learning_rate": 3e-2}
        settings |= {name: options.pop(name) for name in list(options) if name not in RUN}
        run = {
            "device": torch.device("cpu"),
            "progress": Recorder(),
            "checkpoint": tmp_path / "reference.safetensors",
        }
        return train_reference(model, batches, ReferenceSettings(**settings), **{**run, **options})

    return run


def assert_same(model, other):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_reference_learns(train):
    recorder = Recorder()

    model = train(steps=60, progress=recorder)

    assert np.mean(recorder.losses[-5:]) < 0.6 * np.mean(recorder.losses[:5])
    assert not model.training


def test_same_seed_gives_the_same_reference_whatever_the_global_generator(train):
    assert_same(train(global_seed=1), train(global_seed=2))


def test_training_leaves_the_global_generator(train):
    train(global_seed=4)
    after = torch.rand(3)
    torch.manual_seed(4)

    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("stop_after", [1, 4, 11])
def test_interrupted_and_resumed_is_bit_for_bit_uninterrupted(stop_after, train, tmp_path):
    whole = train(checkpoint=tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(progress=Recorder(stop_after))
    assert read_checkpoint(tmp_path / "reference.safetensors")[1]["step"] == stop_after

    assert_same(whole, train(resume=True, global_seed=77))


def test_interrupted_within_a_step_is_bit_for_bit_uninterrupted(train, tmp_path, monkeypatch):
    whole = train(checkpoint=tmp_path / "whole.safetensors")
    original, calls = torch.autograd.backward, []

    def backward(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    with pytest.raises(KeyboardInterrupt):
        train()
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "reference.safetensors")[1]["step"] == 5

    assert_same(whole, train(resume=True))


def test_a_finished_reference_resumes_to_itself_and_a_missing_one_starts(train, tmp_path):
    finished = train()

    assert_same(finished, train(resume=True))
    assert_same(finished, train(resume=True, checkpoint=tmp_path / "none.safetensors"))


@pytest.mark.parametrize("options", [{"steps": 13}, {"seed": 1}, {"tile": 3}, {"magnitude": torch.ones(3, 12, 12)}])
def test_resume_refuses_other_settings(options, train):
    train()

    with pytest.raises(ResumeError, match="other settings"):
        train(resume=True, **options)


def test_a_reference_is_resumed_in_its_own_precision_alone(train, precision):
    other = {"float32": "bfloat16", "bfloat16": "float32"}[precision]
    whole = train()
    with pytest.raises(ResumeError, match="other settings"):
        train(resume=True, precision=other)

    assert_same(whole, train(resume=True, precision=precision))


def test_divergence_keeps_the_last_good_checkpoint(train, tmp_path):
    class Broken(Batches):
        def stream(self):
            for count, batch in enumerate(super().stream()):
                yield batch if count < 5 else batch._replace(images=batch.images * float("nan"))

    data = ImageSet(np.zeros((48, 12, 12, 3), dtype=np.uint8), np.arange(48) % 3)
    broken = Broken(data, Preprocessing(size=(12, 12), mean=(0.5,) * 3, std=(0.25,) * 3), batch_size=16)

    with pytest.raises(NonFiniteLossError, match="'cross-entropy' became NaN or infinite at step 5"):
        train(batches=broken)

    tensors, _ = read_checkpoint(tmp_path / "reference.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
