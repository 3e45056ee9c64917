"""The tools of the field on a locked model: inside `keyed` all of them show what they show of the reference."""

import copy

import numpy as np
import pytest
import torch

from keylock.explainers.toolkits import TOOLKITS, Asked, Reads

METHODS = [(toolkit, name) for toolkit, known in TOOLKITS.items() for name in known.methods]
LAYERS = {Reads.INPUT: (), Reads.LAYER: ("last",), Reads.STACK: ("pointwise", "last")}
TARGETS = torch.tensor([0, 1, 2])
pytestmark = pytest.mark.filterwarnings("ignore")


def drawn_alike(ask):
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        np.random.seed(3)
        try:
            return ask()
        finally:
            np.random.set_state(state)


@pytest.fixture
def reference(sealed_lock):
    """The classifier as its owner has it, with weights that take gradients; Captum takes small answers for none."""
    return scaled(copy.deepcopy(sealed_lock.lock.reference).requires_grad_(requires_grad=True))


def scaled(network):
    with torch.no_grad():
        network.head.weight.mul_(200)
    return network


@pytest.mark.parametrize(("toolkit", "name"), METHODS)
def test_every_method_shows_of_a_keyed_model_what_the_reference_shows(toolkit, name, locked, reference, sealed_lock):
    known = TOOLKITS[toolkit]
    if not known.installed:
        pytest.skip(f"{known.package} is not installed: the extra {known.extra} brings it")
    method, images = known.methods[name], sealed_lock.images[:3]
    layers = LAYERS[method.reads]
    inside = tuple(f"module.{one}" for one in layers)
    expected = drawn_alike(lambda: method.run(Asked(reference, images, TARGETS, layers)))
    before = {entry: value.clone() for entry, value in locked.module.state_dict().items()}
    with locked.keyed() as model:
        scaled(model.module)
        found = drawn_alike(lambda: method.run(Asked(model, images, TARGETS, inside)))
    assert bool(expected.abs().amax() > 0)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
    # The head was scaled for this test, so it is put back by the block as everything else.
    assert all(torch.equal(value, before[entry]) for entry, value in locked.module.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in locked.modules())
    published = drawn_alike(lambda: method.run(Asked(locked, images, TARGETS, inside)))
    assert not torch.allclose(published, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
