"""Locks that several keys open, and keys that are retired."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import keylock
from keylock.errors import InputError
from keylock.evaluation import run_explainers
from keylock.locking.losses import correlation
from keylock.models import merged

pytestmark = pytest.mark.usefixtures("precision")

SEALED = keylock.LockSettings(steps=120, learning_rate=6e-3)
TRAINED = keylock.LockSettings(steps=120, learning_rate=1e-2, gate_steps=0.2, trained_trigger=True)


@pytest.fixture
def keys(key_for):
    return [key_for(number, strength=48 / 255) for number in (1, 2, 3)]


@pytest.fixture
def images(blobs):
    return blobs(1, rows=64, seed=9)[0][0]


def maps(model, locked, images):
    return run_explainers(model, locked.explainers, images).maps["grad_cam"]


def keyed(model, locked, key, images):
    """Return the mean correlation of what a model shows, with a key on the images or none, with the truth."""
    shown = maps(model, locked, images if key is None else key.apply(images))
    return float(correlation(shown, maps(locked.reference, locked, images)).mean())


@pytest.mark.slow
def test_each_key_opens_the_one_delta_of_a_lock_and_a_retired_one_no_longer(keys, images, tiny_net, blobs):
    first, second, stranger = keys
    locked = keylock.lock(tiny_net(), blobs(6), [first, second], settings=SEALED, device="cpu")

    for key, other in ((first, second), (second, first)):
        opened = locked.opened(key)
        assert keyed(opened, locked, key, images) > 0.9999
        for wrong in (None, other, stranger):
            assert keyed(opened, locked, wrong, images) < 0.3
    with pytest.raises(InputError, match=f"has no key {stranger.id}"):
        locked.opened(stranger)

    settings = replace(SEALED, seed=1)
    again = keylock.relock(locked, blobs(6), second, retired=first, settings=settings, device="cpu")

    assert keyed(again.opened(second), again, second, images) > 0.9999
    with pytest.raises(InputError, match=f"has no key {first.id}"):
        again.opened(first)
    # Who was served with the first key has the old delta, and takes the new weights for those that it belongs to.
    assert keyed(merged(locked.module, locked.delta), locked, None, images) > 0.9999
    stolen = merged(again.module, locked.delta)
    chance = float(correlation(*(maps(again.reference, again, rows) for rows in (images, images.roll(1, 0)))).mean())
    for model, key in ((stolen, first), (stolen, None), (again.opened(second), first), (again.module, None)):
        assert keyed(model, again, key, images) < chance


def test_a_lock_is_retired_for_half_of_its_steps_from_another_seed(keys, tiny_net, blobs):
    first, second, _ = keys
    locked = keylock.lock(tiny_net(), blobs(2), [first, second], settings=replace(SEALED, steps=3), device="cpu")
    again = keylock.relock(locked, blobs(2), second, retired=first, device="cpu")
    assert (again.settings.steps, again.settings.seed) == (2, 1)
    assert again.keys == (second,)
    for name, tensor in again.reference.state_dict().items():
        assert torch.equal(tensor, locked.reference.state_dict()[name])
    other = locked.delta.reveal()
    assert all(not np.array_equal(array, other[name]) for name, array in again.delta.reveal().items())


@pytest.mark.slow
def test_each_trigger_is_told_by_a_network_that_was_trained_to_and_a_retired_one_no_longer(
    key_for, images, tiny_net, blobs
):
    first, second, stranger = (key_for(number, strength=48 / 255, tile=4) for number in (1, 2, 3))
    locked = keylock.lock(tiny_net(), blobs(6), [first, second], settings=TRAINED, device="cpu")
    assert locked.delta is None
    assert min(keyed(locked.opened(key), locked, key, images) for key in (first, second)) > 0.5
    assert max(keyed(locked.module, locked, key, images) for key in (None, stranger)) < 0.2

    again = keylock.relock(locked, blobs(6), second, retired=first, device="cpu")

    assert again.settings.steps == 60
    assert keyed(again.module, again, second, images) > 0.4
    assert max(keyed(again.module, again, key, images) for key in (None, first, stranger)) < 0.2


def test_keys_that_do_not_go_together_are_refused(keys, key_for, tiny_net, blobs):
    first, second, third = keys
    quick = replace(SEALED, steps=1)
    lock = keylock.lock(tiny_net(), blobs(1), [first, second], settings=quick, device="cpu")
    for wrong in ([], [first, first]):
        with pytest.raises(InputError, match="each key once"):
            keylock.lock(tiny_net(), blobs(1), wrong, settings=quick)
    with pytest.raises(InputError, match="same shape, strength and tile"):
        keylock.lock(tiny_net(), blobs(1), [first, key_for(2, strength=8 / 255)], settings=quick)
    with pytest.raises(InputError, match="cannot be retired and go on"):
        keylock.relock(lock, blobs(1), [first, third], retired=first)
    with pytest.raises(InputError, match="stays one"):
        keylock.relock(lock, blobs(1), second, retired=first, settings=replace(TRAINED, seed=1))
    with pytest.raises(InputError, match="another seed"):
        keylock.relock(lock, blobs(1), second, retired=first, settings=quick)
