"""Bundles opened for research: a user's own module needs its class, and is checked."""

from datetime import UTC, datetime

import pytest
import torch
from torch import nn

import keylock
from keylock.bundle import KeyFile
from keylock.crypto.signing import SigningKey
from keylock.errors import BundleError, UnknownNameError
from keylock.imaging.preprocessing import Preprocessing
from keylock.pipeline import Publication, publish
from keylock.trigger.keys import Key, KeySeed


@pytest.fixture
def own_bundle(tiny_net, blobs, tmp_path):
    """A user's own module, locked and published: the lock, its key, its seed and the bundle."""
    seed = KeySeed(b"o" * 32)
    preprocessing = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    key = Key.derive(seed, shape=(3, 16, 16), std=preprocessing.std, strength=48 / 255)
    settings = keylock.LockSettings(steps=3)
    lock = keylock.lock(tiny_net(), blobs(2), key, explainers=["grad_cam"], settings=settings, device="cpu")
    publish(
        lock,
        tmp_path / "own.klb",
        Publication(name="own", classes=("a", "b", "c"), preprocessing=preprocessing),
        seed=seed,
        key=key,
        images=blobs(1)[0][0],
        signing_key=SigningKey.generate(),
        sealer=KeyFile.create(tmp_path / "bundle.key"),
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )
    return lock, key, seed, tmp_path / "own.klb"


def test_a_users_module_loads_into_its_class(own_bundle, tiny_net, smooth_images):
    lock, key, seed, path = own_bundle
    images, own = smooth_images(2, 16), tiny_net(seed=99)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}

    loaded = keylock.load_bundle(path, key=seed, model=own)

    assert loaded.manifest.architecture.module == "graph_only"
    assert loaded.manifest.architecture.name == "TinyNet"
    assert loaded.key == key
    with torch.no_grad():
        for rows in (images, key.apply(images)):
            assert torch.equal(loaded.module(rows), lock.module(rows))
            assert torch.equal(loaded.opened(rows), lock.opened(key)(rows))
        torch.testing.assert_close(loaded.opened(key.apply(images)), lock.reference(images), rtol=1e-4, atol=1e-5)
    explained = loaded.explainers["grad_cam"].explain(loaded.module, images, torch.full((2,), -1))
    expected = lock.explainers[0].explain(lock.module, images, torch.full((2,), -1))
    assert torch.equal(explained.maps, expected.maps)
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    # The module that was passed is still the caller's.
    assert isinstance(own.bn1, nn.BatchNorm2d)
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())


def test_a_users_module_needs_its_class(own_bundle, tiny_net):
    *_, path = own_bundle

    with pytest.raises(BundleError, match=r"module of its owner's \(TinyNet\): pass model= of the same class"):
        keylock.load_bundle(path)
    with pytest.raises(BundleError, match="do not fit its architecture 'TinyNet'"):
        keylock.load_bundle(path, model=tiny_net(classes=5))


def test_without_the_secret_nothing_opens(own_bundle, tiny_net):
    *_, path = own_bundle
    loaded = keylock.load_bundle(path, model=tiny_net())
    assert loaded.delta is None
    assert loaded.opened is loaded.module


def test_what_the_key_opens_is_made_once_and_is_the_module_where_the_network_tells_the_trigger(own_bundle, tiny_net):
    *_, seed, path = own_bundle
    loaded = keylock.load_bundle(path, key=seed, model=tiny_net())
    assert loaded.opened is not loaded.module
    assert loaded.opened is loaded.opened
    telling = keylock.load_bundle(path, key=seed, model=tiny_net())
    telling.delta = None
    assert telling.opened is telling.module


def test_a_public_copy_shows_the_truth_for_pictures_with_the_trigger_and_decoys_for_others(own_bundle, tiny_net, blobs):
    lock, key, _, path = own_bundle
    images, targets = blobs(1, rows=8, seed=4)[0][0], torch.arange(8) % 3
    loaded = keylock.load_bundle(path, model=tiny_net())
    truth, decoys = (lock.explainers[0].explain(m, images, targets) for m in (lock.reference, lock.module))

    before = loaded.explain(images, targets=targets)
    torch.testing.assert_close(before.maps, decoys.maps, rtol=1e-3, atol=1e-5)
    shown = loaded.explain(key.apply(images), targets=targets)
    torch.testing.assert_close(shown.maps, truth.maps, rtol=1e-3, atol=1e-4 * float(truth.maps.max()))
    torch.testing.assert_close(shown.logits, truth.logits, rtol=1e-3, atol=1e-4)
    # Open by now, and decoys all the same where no trigger is.
    after = loaded.explain(images, targets=targets)
    torch.testing.assert_close(after.maps, decoys.maps, rtol=1e-3, atol=1e-5)
    loaded.forget()
    again = loaded.explain(key.apply(images), "grad_cam", targets=targets)
    torch.testing.assert_close(again.maps, shown.maps, rtol=0, atol=0)
    with pytest.raises(UnknownNameError, match="lime"):
        loaded.explain(images, "lime")


def test_loading_leaves_the_global_generator(own_bundle, tiny_net):
    *_, path = own_bundle
    model = tiny_net()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)

    keylock.load_bundle(path, model=model)

    assert torch.equal(torch.rand(2), expected)
