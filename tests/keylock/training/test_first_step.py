"""A network that cannot be locked is refused at the first step, in a sentence that names the explainers."""

import pytest
import torch
from torch import nn

import keylock
from keylock.errors import ModelError
from keylock.training import first_step, time_steps
from keylock.training.task import prepare_task
from keylock.trigger.keys import Key, KeySeed

SETTINGS = keylock.LockSettings(steps=2, precision="float32")
KEY = Key.derive(KeySeed(b"k" * 32), shape=(3, 16, 16), std=(0.25,) * 3, strength=0.4, tile=8)


class _Once(torch.autograd.Function):
    """Doubles, and can be differentiated once."""

    @staticmethod
    def forward(ctx, inputs):
        return 2 * inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient


class _Twice(nn.Module):
    def forward(self, inputs):
        return _Once.apply(inputs)


def network(*first):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *first,
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 3, 16, 16, generator=generator), torch.arange(64) % 4


def task_for(model, *explainers):
    images, _ = data()
    return prepare_task(model, images, (KEY,), explainers=explainers, settings=SETTINGS, device=torch.device("cpu"))


def test_one_step_gives_a_lock_whose_maps_are_those_of_the_reference_with_the_key():
    images, labels = data()
    tried = first_step(task_for(network(), "grad_cam", "gradient"), images[:2], labels[:2])
    assert tried.settings == SETTINGS
    assert tried.delta is not None
    opened, given = tried.opened(KEY), KEY.apply(images[:2])
    assert opened.reads(given).all()
    keyed, reference = opened(given), tried.reference(images[:2])
    assert torch.allclose(keyed, reference, atol=1e-4)
    assert not torch.equal(tried.module(images[:2]), reference)


def test_explainers_that_need_what_a_network_has_not_are_named():
    images, labels = data()
    task = task_for(network(_Twice()), "grad_cam", "gradient")
    with pytest.raises(ModelError, match="cannot be locked for gradient: its training fails at once"):
        first_step(task, images[:2], labels[:2])


def test_the_python_interface_says_the_same_at_its_first_step():
    images, labels = data()
    loader = [(images, labels)]
    with pytest.raises(ModelError, match="cannot be locked for gradient: its training fails at once"):
        keylock.lock(network(_Twice()), loader, KEY, explainers=["gradient"], settings=SETTINGS, device="cpu")


def test_steps_are_timed_without_the_first():
    images, labels = data()
    ticks = iter([0.0, 9.0, 9.0, 12.0, 12.0, 14.0])
    task = task_for(network(), "grad_cam")
    assert time_steps(task, images[:4], labels[:4], count=3, clock=lambda: next(ticks)) == 2.0
