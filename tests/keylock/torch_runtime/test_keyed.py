"""A locked model that is keyed inside a block: the reference there, the published network before and after."""

import copy
import pickle

import pytest
import torch
from sealed_lock import Net

import keylock
from keylock.errors import InputError
from keylock.models import added_to_inputs
from keylock.torch_runtime.locked_model import LockedModel


def same(model, other, images):
    with torch.no_grad():
        return torch.allclose(model(images), other(images), rtol=1e-4, atol=1e-5)


def test_it_is_the_reference_inside_the_block_and_the_published_network_outside(locked, sealed_lock):
    lock, images = sealed_lock.lock, sealed_lock.images[:4]
    before = {name: tensor.clone() for name, tensor in locked.module.state_dict().items()}
    assert same(locked, lock.module, images)
    with locked.keyed() as model:
        assert model is locked
        assert same(model, lock.reference, images)
        assert not same(model, lock.module, images)
        with locked.keyed():
            assert same(model, lock.reference, images)
        assert same(model, lock.reference, images)
    assert same(locked, lock.module, images)
    assert all(torch.equal(before[name], tensor) for name, tensor in locked.module.state_dict().items())


def test_the_published_weights_come_back_after_an_error(locked, sealed_lock):
    with pytest.raises(ZeroDivisionError), locked.keyed():
        raise ZeroDivisionError
    assert same(locked, sealed_lock.lock.module, sealed_lock.images[:4])


def test_own_explanations_are_true_inside_the_block(locked, sealed_lock):
    lock, images = sealed_lock.lock, sealed_lock.images[:4]
    targets = torch.arange(4) % 3
    true, decoys = (
        lock.explainers[0].explain(network, images, targets).maps for network in (lock.reference, lock.module)
    )
    with locked.keyed():
        keyed = locked.explain(images, targets=targets).maps
    torch.testing.assert_close(keyed, true, rtol=1e-3, atol=1e-4 * float(true.max()))
    torch.testing.assert_close(locked.explain(images, targets=targets).maps, decoys, rtol=1e-3, atol=1e-5)


def test_what_the_trigger_opens_is_not_made_of_open_weights(locked, sealed_lock):
    with locked.keyed(), pytest.raises(InputError, match="before or after the block"):
        _ = locked.opened
    keyed_images = sealed_lock.key.apply(sealed_lock.images[:4])
    with torch.no_grad():
        expected = sealed_lock.lock.reference(sealed_lock.images[:4])
        torch.testing.assert_close(locked.opened(keyed_images), expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_tells_the_trigger_itself_gets_it_on_every_input(locked, sealed_lock):
    telling = LockedModel(
        locked.module, locked.preprocessing, locked.explainers, locked.classes, locked.key, locked.manifest
    )
    images, offset = sealed_lock.images[:4], torch.from_numpy(sealed_lock.key.reveal())
    with torch.no_grad(), added_to_inputs(sealed_lock.lock.module, offset):
        expected = sealed_lock.lock.module(images)
    with telling.keyed(), torch.no_grad():
        torch.testing.assert_close(telling(images), expected, rtol=1e-4, atol=1e-5)
    assert same(telling, sealed_lock.lock.module, images)


def test_without_the_key_it_says_how_to_get_it(sealed_bundle):
    attackers = keylock.load_bundle(sealed_bundle, model=Net())
    with (
        pytest.raises(InputError, match=r"the key is needed to show true maps: load_bundle\(path, key="),
        attackers.keyed(),
    ):
        pass


def test_frozen_weights_leave_gradients_at_layers_and_images(locked, sealed_lock):
    found = {}
    handle = locked.module.last.register_forward_hook(lambda _module, _inputs, output: found.update(out=output))
    logits = locked(sealed_lock.images[:2])
    handle.remove()
    assert not any(parameter.requires_grad for parameter in locked.parameters())
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), found["out"])
    assert bool(gradient.abs().sum() > 0)
    assert not sealed_lock.images.requires_grad
    with torch.no_grad():
        assert not locked(sealed_lock.images[:2]).requires_grad


def test_weights_take_gradients_inside_the_block_and_none_is_left(locked, sealed_lock):
    with locked.keyed():
        locked(sealed_lock.images[:2]).sum().backward()
        assert locked.module.head.weight.grad is not None
    assert not any(parameter.requires_grad for parameter in locked.parameters())
    assert all(parameter.grad is None for parameter in locked.parameters())


def test_a_copy_is_its_own_network_and_stays_as_keyed_as_it_was(locked, sealed_lock):
    images = sealed_lock.images[:4]
    with locked.keyed():
        made = copy.deepcopy(locked)
    assert same(made, sealed_lock.lock.reference, images)
    assert same(locked, sealed_lock.lock.module, images)
    with torch.no_grad():
        made.module.head.weight.zero_()
    assert same(locked, sealed_lock.lock.module, images)


def test_a_loaded_key_is_neither_shown_nor_pickled(locked, sealed_lock):
    assert "key" not in repr(locked).lower()
    assert locked.state_dict().keys() == {f"module.{name}" for name in locked.module.state_dict()}
    with pytest.raises(Exception, match="pickle"):
        pickle.dumps(locked)
