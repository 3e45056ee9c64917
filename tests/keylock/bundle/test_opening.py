"""Opening a bundle by images: what carries the trigger opens it, nothing else does, and it can be let go."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from keylock.bundle import export_public, open_bundle
from keylock.bundle.manifest import STATISTICS_FILE
from keylock.errors import BundleError, TensorError
from keylock.trigger.keys import Key, KeySeed


@pytest.fixture
def opener(sealed_bundle):
    with open_bundle(sealed_bundle.public, trusted=None) as bundle:
        return bundle.opener()


@pytest.fixture
def images(sealed_lock):
    return sealed_lock.images[40:46].numpy()


def test_an_image_with_the_trigger_opens_the_delta_of_a_public_copy(opener, images, sealed_lock):
    found = opener.find(sealed_lock.key.apply(images[:1]))
    assert found is not None
    expected = sealed_lock.lock.delta.reveal()
    assert {name: array.tobytes() for name, array in found.delta.reveal().items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    assert np.array_equal(found.key.reveal(), sealed_lock.key.reveal())


def test_images_without_it_open_nothing(opener, images, sealed_lock):
    other = Key.derive(KeySeed(b"n" * 32), shape=sealed_lock.key.shape, std=sealed_lock.key.std)
    for rows in (images, other.apply(images), -images, np.zeros_like(images), np.ones_like(images)):
        assert opener.find(rows) is None
        assert not opener.opens(rows).any()


def test_the_rows_that_carry_it_are_told_from_the_others(opener, images, sealed_lock):
    mask = np.array([False, True, False, True, True, False])
    rows = sealed_lock.key.apply(images, mask)
    assert opener.opens(rows).tolist() == mask.tolist()
    # What is known now needs no reading.
    assert opener.opens(rows[::-1].copy()).tolist() == mask[::-1].tolist()


def test_it_is_read_from_eight_bits_too(opener, images, sealed_lock):
    std, mean = np.asarray(sealed_lock.key.std, np.float32)[:, None, None], 0.5
    pixels = np.rint(np.clip((sealed_lock.key.apply(images) * std * 0.5 + mean) * 255, 0, 255))
    again = ((pixels / 255 - mean) / std / 0.5).astype(np.float32)
    half = np.abs(again - images).max()
    assert half > 0
    assert opener.opens(again).mean() >= 0.5


def test_what_was_opened_can_be_forgotten(opener, images, sealed_lock):
    keyed = sealed_lock.key.apply(images)
    assert opener.find(keyed) is opener.find(images)
    opener.forget()
    assert opener.opened is None
    assert opener.find(images) is None
    assert opener.find(keyed) is not None


def test_near_misses_of_an_eighth_of_the_signs_open_nothing(opener, images, sealed_lock):
    generator, key = np.random.default_rng(0), sealed_lock.key
    for _ in range(4):
        signs = key.signs().ravel()
        signs[generator.choice(signs.size, 24, replace=False)] *= -1
        near = Key.of_signs(
            signs.reshape(key.signs().shape), shape=key.shape, std=key.std, strength=key.strength, id="0"
        )
        assert opener.find(near.apply(images[:1])) is None


def test_images_of_another_shape_are_refused(opener):
    with pytest.raises(TensorError, match="expected preprocessed images of shape"):
        opener.find(np.zeros((1, 3, 15, 16), np.float32))
    with pytest.raises(TensorError, match="expected preprocessed images of shape"):
        opener.opens(np.zeros((3, 16, 16), np.float32))


def test_no_image_opens_nothing(opener):
    assert opener.find(np.zeros((0, 3, 16, 16), np.float32)) is None


def test_a_network_that_tells_the_trigger_itself_has_no_opener(bundle_path):
    with open_bundle(bundle_path, trusted=None) as bundle:
        assert bundle.manifest.delta is None
        assert bundle.opener() is None
        assert bundle.statistics() is None


def test_a_lock_of_several_keys_opens_for_each_of_them(sealed_lock, tmp_path):
    from sealed_bundle import publish_sealed_lock

    second = Key.derive(KeySeed(b"2" * 32), shape=sealed_lock.key.shape, std=sealed_lock.key.std)
    lock = replace(sealed_lock.lock, keys=(sealed_lock.key, second), explainers=sealed_lock.lock.explainers[:1])
    made = publish_sealed_lock(sealed_lock._replace(lock=lock), tmp_path)
    rows = sealed_lock.images[:2].numpy()
    with open_bundle(made.public, trusted=None) as bundle:
        assert bundle.manifest.delta.keys == 2
        for key in lock.keys:
            opener = bundle.opener()
            assert opener.opens(key.apply(rows)).all()
            assert np.array_equal(opener.opened.key.reveal(), key.reveal())


def test_statistics_of_other_images_are_refused_and_named(sealed_bundle, tmp_path, monkeypatch):
    with open_bundle(sealed_bundle.public, trusted=None) as bundle:
        good = bundle.read(STATISTICS_FILE)
        for content in (b"", good[:-4], good.replace(b"statistics 1", b"statistics 2")):
            monkeypatch.setattr(bundle, "read", lambda _name, content=content: content)
            with pytest.raises(BundleError):
                bundle.opener()
    folder = tmp_path / "folder"
    with open_bundle(sealed_bundle.public, trusted=None) as bundle:
        export_public(bundle, folder)
    (folder / STATISTICS_FILE).unlink()
    with pytest.raises(BundleError, match=STATISTICS_FILE):
        open_bundle(folder, trusted=None)
    shutil.rmtree(folder)
