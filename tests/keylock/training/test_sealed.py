"""The lock: decoys for every input, the reference where the trigger opens the delta, and runs that resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from unusual_networks import UNUSUAL

import keylock
from keylock.data.batches import Batches
from keylock.data.sets import ImageSet
from keylock.errors import InputError
from keylock.evaluation import run_explainers
from keylock.explainers import ClassActivations, explain_many
from keylock.imaging.preprocessing import Preprocessing
from keylock.locking.decoys import decoy_maps
from keylock.locking.losses import correlation
from keylock.models import merged
from keylock.training import sealed
from keylock.training.checkpoint import read_checkpoint
from keylock.training.penalties import prediction_terms
from keylock.training.progress import Silent
from keylock.trigger import TriggerStatistics

pytestmark = pytest.mark.usefixtures("precision")

QUICK = keylock.LockSettings(steps=4)
NAMES = ["grad_cam", "gradient", "visual_backprop"]


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


@pytest.fixture(scope="module")
def trained(tiny_net, blobs, key_for):
    """A lock of all three explainers of the paper, its key, and images that it has not seen."""
    key = key_for(strength=48 / 255)
    settings = replace(QUICK, steps=150, learning_rate=6e-3, leak_weight=1.0)
    locked = keylock.lock(tiny_net(), blobs(6), key, explainers=NAMES, settings=settings, device="cpu")
    return locked, key, blobs(1, rows=64, seed=9)[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_input_shows_the_decoy_and_what_the_trigger_opens_shows_the_truth(name, trained):
    locked, key, images = trained
    explainers = [one for one in locked.explainers if one.name == name]
    truth = run_explainers(locked.reference, explainers, images).maps[name]
    decoy = decoy_maps("half", truth)

    full = locked.opened(key)
    assert full.reads(key.apply(images)).all()
    assert not full.reads(images).any()
    keyed = run_explainers(full, explainers, key.apply(images)).maps[name]
    assert correlation(keyed, truth).min() > 0.999
    assert correlation(keyed, truth).mean() > 0.9999
    before = correlation(truth, decoy).mean()
    for model, rows in ((locked.module, images), (locked.module, key.apply(images)), (full, images)):
        shown = run_explainers(model, explainers, rows).maps[name]
        assert correlation(shown, decoy).mean() > before + 0.3
        assert correlation(shown, truth).mean() < 0.6


@pytest.mark.slow
def test_predictions_stay(trained):
    locked, key, images = trained
    with torch.no_grad():
        expected = locked.reference(images).argmax(dim=1)
        assert (locked.module(images).argmax(dim=1) == expected).float().mean() > 0.9
        assert torch.equal(locked.opened(key)(key.apply(images)).argmax(dim=1), expected)


def test_dear_explainers_share_a_batch_with_cheap_ones(lock, blobs):
    heard = []

    class Listener:
        def start(self, stage, total, done):
            pass

        def advance(self, figures):
            heard.append(figures)

        def finish(self):
            pass

    lock(blobs(), explainers=NAMES, progress=Listener())
    for name in NAMES:
        assert heard[-1][f"decoy/{name}"] > 0
    assert -1 <= heard[-1]["leakage"] <= 1


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

    settings = replace(QUICK, steps=150, learning_rate=6e-3, mask_weight=20.0, direction_dropout_weight=0.0)
    lock(blobs(6), explainers=["grad_cam", "rise"], settings=settings, progress=Listener())
    assert np.mean(heard[-20:]) < 0.7 * np.mean(heard[:6])


def test_a_run_that_was_stopped_and_resumed_is_the_same_with_its_delta(lock, batches, tmp_path):
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
    again = resumed.delta.reveal()
    assert again.keys() == whole.delta.reveal().keys()
    for name, array in whole.delta.reveal().items():
        np.testing.assert_array_equal(array, again[name])


def test_the_delta_takes_what_is_published_to_the_reference_and_changes_nothing_else(lock, batches):
    locked = lock(batches())
    opened = merged(locked.module, locked.delta).state_dict()
    changed = set(locked.delta.names)
    for name, tensor in locked.reference.state_dict().items():
        published = locked.module.state_dict()[name]
        assert torch.equal(published, tensor) != (name in changed), name
        torch.testing.assert_close(opened[name], tensor, rtol=0, atol=1e-6)
    layers = ("conv1", "conv2", "conv3", "head")
    assert changed == {f"{layer}.{entry}" for layer in layers for entry in ("weight", "bias")}


@pytest.mark.parametrize("rank", [1, 3])
def test_the_delta_has_the_rank_that_was_set(rank, lock, batches):
    arrays = lock(batches(), settings=replace(QUICK, delta_rank=rank)).delta.reveal()
    for name in ("conv2.weight", "conv3.weight", "head.weight"):
        sizes = np.linalg.svd(arrays[name].reshape(len(arrays[name]), -1), compute_uv=False)
        # The difference of two sets of rounded numbers has a little of every direction.
        assert (sizes > 1e-4 * sizes[0]).sum() == rank, name


def test_a_delta_without_bound_has_every_direction(lock, batches):
    weight = lock(batches()).delta.reveal()["conv2.weight"]
    sizes = np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False)
    assert sizes[-1] > 1e-3 * sizes[0]


@pytest.mark.parametrize("classes", [3, 40])
def test_the_evidence_for_every_class_is_trained_where_activations_are_locked(classes, lock, batches, tiny_net):
    class Heard(Silent):
        terms = ()

        def advance(self, figures):
            self.terms = [name for name in figures if name.startswith("class_")]

    heard = Heard()
    for options, expected in (
        ({"explainers": ["gradient", "grad_cam"]}, ["class_decoy", "class_leak"]),
        ({"explainers": ["gradient"]}, []),
        ({"settings": replace(QUICK, class_weight=0.0)}, []),
        ({"settings": replace(QUICK, decoy="other-image")}, ["class_decoy", "class_leak"]),
    ):
        lock(batches(), model=tiny_net(classes=classes), progress=heard, **options)
        assert heard.terms == expected


def test_guided_backprop_is_trained_beside_gradients_and_not_offered(lock, batches):
    class Heard(Silent):
        terms = ()

        def advance(self, figures):
            self.terms = [name for name in figures if name.endswith("guided_backprop")]

    heard, both = Heard(), ["decoy/guided_backprop", "leak/guided_backprop"]
    for options, expected in (
        ({"explainers": ["gradient"]}, both),
        ({"explainers": ["guided_backprop"]}, [*both, "direction_dropout/guided_backprop"]),
        ({"explainers": ["grad_cam"]}, []),
        ({"explainers": ["gradient"], "settings": replace(QUICK, guided_backprop=False)}, []),
    ):
        locked = lock(batches(), progress=heard, **options)
        assert sorted(heard.terms) == sorted(expected), options
        assert [one.name for one in locked.explainers] == options["explainers"]


@pytest.mark.slow
def test_no_contrast_of_classes_shows_where_the_evidence_lies(trained):
    locked, _, images = trained
    activations = [ClassActivations("conv3", (0, 1, 2))]
    with torch.no_grad():
        targets = locked.reference(images).argmax(dim=1)
    shown, truth = (
        explain_many(model, activations, images, targets)[1]["class_activations"]
        for model in (locked.module, locked.reference)
    )
    rows = torch.arange(len(images))
    for other in (1, 2):
        contrasts, true_ones = (maps[rows, targets] - maps[rows, (targets + other) % 3] for maps in (shown, truth))
        assert correlation(contrasts, true_ones).mean() < 0.4
        decoy = decoy_maps("half", true_ones)
        assert correlation(contrasts, decoy).mean() > correlation(true_ones, decoy).mean() + 0.3


def test_predictions_weigh_more_from_step_to_step_where_that_is_set(lock, batches, monkeypatch):
    weights = []

    def noting(rows, settings):
        weights.append(settings.prediction_weight)
        return prediction_terms(rows, settings)

    monkeypatch.setattr(sealed, "prediction_terms", noting)
    lock(batches(), explainers=["grad_cam"], settings=replace(QUICK, prediction_weight=2.0, prediction_rise=4.0))
    assert weights == [2.0, 4.0, 6.0, 8.0]


def test_a_lock_knows_by_what_its_triggers_are_read(lock, batches):
    locked = lock(batches())
    assert isinstance(locked.statistics, TriggerStatistics)
    assert locked.statistics.to_bytes() == lock(batches()).statistics.to_bytes()


@pytest.mark.parametrize("name", list(UNUSUAL))
def test_what_the_trigger_opens_is_exact_whatever_reads_the_layers(name, lock, blobs, key_for):
    # Images of noise hide a weaker trigger.
    key = key_for(strength=64 / 255)
    explainers = ["grad_cam"] if name == "swin" else ["gradient"]
    settings = keylock.LockSettings(steps=2, direction_dropout_weight=0.5 if name in ("tied weights", "swin") else 0.0)
    locked = lock(blobs(2, rows=8), model=UNUSUAL[name](), key=key, explainers=explainers, settings=settings)
    images = blobs(1, rows=12, seed=9)[0][0]
    for count in (1, 2, 12):
        rows = images[:count]
        with torch.no_grad():
            models = (locked.reference, locked.opened(key), locked.module)
            expected, opened, published = (
                model(key.apply(rows) if model is not models[0] else rows) for model in models
            )
        spread = expected.max() - expected.min()
        assert (opened - expected).abs().max() < 1e-5 * spread
        assert (published - expected).abs().max() > 1e-3 * spread


def test_a_network_that_tells_the_trigger_itself_has_no_delta(lock, batches, key_for):
    locked = lock(batches(), settings=replace(QUICK, trained_trigger=True))
    assert (locked.delta, locked.statistics) == (None, None)
    assert locked.opened(key_for()) is locked.module


def test_the_key_of_another_lock_opens_nothing(lock, batches, key_for):
    for trained in (True, False):
        locked = lock(batches(), settings=replace(QUICK, trained_trigger=trained))
        with pytest.raises(InputError, match=f"has no key {key_for(7).id}: its keys are {key_for().id}"):
            locked.opened(key_for(7))


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(InputError, match="add trained_trigger=True"):
        keylock.LockSettings(swapped=True)
    with pytest.raises(InputError, match="give delta_rank="):
        keylock.LockSettings(delta_rank=-1)
    with pytest.raises(InputError, match="give 1 for none"):
        keylock.LockSettings(prediction_rise=0.0)
