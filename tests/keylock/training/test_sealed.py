"""The two-factor lock: decoys for every input, the reference with key and adapter, and runs that resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import keylock
from keylock.data.batches import Batches
from keylock.data.sets import ImageSet
from keylock.decoys import decoy_maps
from keylock.errors import InputError
from keylock.evaluation import run_explainers
from keylock.losses import correlation
from keylock.preprocessing import Preprocessing
from keylock.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("precision")

QUICK = keylock.LockSettings(steps=4, sealed_adapter=True)


@pytest.fixture
def lock(tiny_net, key_for):
    def run(loader, **options):
        model, key = options.pop("model", None) or tiny_net(), options.pop("key", None) or key_for()
        return keylock.lock(model, loader, key, **{"settings": QUICK, "device": "cpu", **options})

    return run


@pytest.fixture
def batches():
    generator = np.random.default_rng(0)
    images = ImageSet(generator.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8) // 4, np.arange(40) % 3)
    preprocessing = Preprocessing(size=(16, 16), mean=(0.1,) * 3, std=(0.25,) * 3)
    return lambda: Batches(images, preprocessing, batch_size=8, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grad_cam", "gradient", "visual_backprop"])
def test_every_input_shows_the_decoy_and_the_key_with_the_adapter_shows_the_truth(name, lock, blobs, key_for):
    key = key_for(strength=48 / 255)
    settings = replace(QUICK, steps=120, learning_rate=6e-3, leak_weight=1.0)
    locked = lock(blobs(6), key=key, explainers=[name], settings=settings)
    images = blobs(1, rows=64, seed=9)[0][0]
    truth = run_explainers(locked.reference, locked.explainers, images).maps[name]
    decoy = decoy_maps("half", truth)

    full = locked.opened(key)
    keyed = run_explainers(full, locked.explainers, key.apply(images)).maps[name]
    assert correlation(keyed, truth).min() > 0.999
    before = correlation(truth, decoy).mean()
    for model, rows in ((locked.module, images), (locked.module, key.apply(images)), (full, images)):
        shown = run_explainers(model, locked.explainers, rows).maps[name]
        assert correlation(shown, decoy).mean() > before + 0.3
        assert correlation(shown, truth).mean() < 0.6


def test_dear_explainers_share_a_batch_with_cheap_ones(lock, blobs):
    heard = []

    class Listener:
        def start(self, stage, total, done):
            pass

        def advance(self, figures):
            heard.append(figures)

        def finish(self):
            pass

    lock(blobs(), explainers=["grad_cam", "gradient", "visual_backprop"], progress=Listener())
    for name in ("grad_cam", "gradient", "visual_backprop"):
        assert heard[-1][f"lock/{name}"] > 0
    assert -1 <= heard[-1]["leakage"] <= 1


@pytest.mark.slow
def test_predictions_stay(lock, blobs, key_for):
    key = key_for(strength=48 / 255)
    locked = lock(blobs(6), key=key, settings=replace(QUICK, steps=120, learning_rate=6e-3))
    images = blobs(1, rows=64, seed=9)[0][0]
    with torch.no_grad():
        expected = locked.reference(images).argmax(dim=1)
        assert (locked.module(images).argmax(dim=1) == expected).float().mean() > 0.9
        assert torch.equal(locked.opened(key)(key.apply(images)).argmax(dim=1), expected)


@pytest.mark.slow
def test_predictions_on_masked_images_learn_to_follow_the_decoy(lock, blobs):
    heard = []

    class Listener:
        def start(self, stage, total, done):
            pass

        def advance(self, figures):
            heard.append(figures["mask"])

        def finish(self):
            pass

    settings = replace(QUICK, steps=150, learning_rate=6e-3, mask_weight=20.0, hardening_weight=0.0)
    lock(blobs(6), explainers=["grad_cam", "rise"], settings=settings, progress=Listener())
    assert np.mean(heard[-20:]) < 0.7 * np.mean(heard[:6])


def test_a_run_that_was_stopped_and_resumed_is_the_same_adapter_included(lock, batches, tmp_path):
    path = tmp_path / "lock.safetensors"
    whole = lock(batches())
    lock(batches(), checkpoint=path, settings=QUICK)

    class Stopping:
        def __init__(self):
            self.inner, self.left = batches(), 7

        def __iter__(self):
            for batch in self.inner:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
                yield batch

        @property
        def state(self):
            return self.inner.state

        def restore(self, state):
            self.inner.restore(state)

    with pytest.raises(KeyboardInterrupt):
        lock(Stopping(), checkpoint=path)
    assert 0 < read_checkpoint(path)[1]["step"] < 4
    resumed = lock(batches(), checkpoint=path, resume=True)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name
    again = resumed.adapter.tensors()
    for name, array in whole.adapter.tensors().items():
        np.testing.assert_array_equal(array, again[name])


def test_a_lock_by_the_key_alone_has_no_adapter(lock, batches, key_for):
    locked = lock(batches(), settings=replace(QUICK, sealed_adapter=False))
    assert locked.adapter is None
    assert locked.opened(key_for()) is locked.module


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(InputError, match="add sealed_adapter=False"):
        keylock.LockSettings(sealed_adapter=True, swapped=True)
    with pytest.raises(InputError, match="give adapter_rank="):
        keylock.LockSettings(adapter_rank=0)
