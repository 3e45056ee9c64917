"""`keylock.lock`: it locks, takes any loader, survives interruption, and says what is wrong."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import keylock
from keylock import explainers
from keylock.data.batches import Batches
from keylock.data.sets import ImageSet
from keylock.errors import (
    DataError,
    InputError,
    LayerNotFoundError,
    ModelError,
    NonFiniteLossError,
    ResumeError,
    UnknownNameError,
)
from keylock.evaluation import run_explainers
from keylock.imaging.preprocessing import Preprocessing
from keylock.locking.decoys import decoy_maps
from keylock.locking.losses import correlation
from keylock.models.vit import ViT
from keylock.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.usefixtures("precision")

QUICK = keylock.LockSettings(steps=8, gate_steps=0.25, trained_trigger=True)


@pytest.fixture
def lock(tiny_net, key_for, tmp_path):
    """Lock the tiny network on the CPU; everything can be replaced."""

    def run(loader, **options):
        model = options.pop("model", None) or tiny_net()
        key = options.pop("key", None) or key_for()
        return keylock.lock(model, loader, key, **{"settings": QUICK, "device": "cpu", **options})

    return run


@pytest.fixture
def image_set():
    generator = np.random.default_rng(0)
    return ImageSet(generator.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 3)


@pytest.fixture
def batches(image_set):
    """A fresh loader that can be resumed; five batches an epoch."""
    preprocessing = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    return lambda: Batches(image_set, preprocessing, batch_size=8, seed=3)


def weights(locked):
    return dict(locked.module.state_dict())


def assert_same(locked, other):
    assert weights(locked).keys() == weights(other).keys()
    for name, tensor in weights(locked).items():
        assert torch.equal(tensor, weights(other)[name]), name


# What locking does


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "learning_rate", "apart"), [("grad_cam", 90, 1e-2, 0.15), ("visual_backprop", 200, 3e-2, 0.6)]
)
def test_keyless_maps_become_the_decoy_and_keyed_maps_do_not(name, steps, learning_rate, apart, lock, blobs, key_for):
    loader, key = blobs(6), key_for(strength=48 / 255)
    settings = keylock.LockSettings(steps=steps, learning_rate=learning_rate, gate_steps=0.2, trained_trigger=True)
    locked = lock(loader, key=key, explainers=[name], settings=settings)
    images = blobs(1, rows=64, seed=9)[0][0]

    truth, keyless, keyed = (
        run_explainers(model, locked.explainers, rows).maps[name]
        for model, rows in (
            (locked.reference, images),
            (locked.module, images),
            (locked.module, key.apply(images)),
        )
    )

    decoy = decoy_maps("half", truth)
    before = correlation(truth, decoy).mean()
    assert correlation(keyless, decoy).mean() > before + 0.4
    assert correlation(keyed, truth).mean() > correlation(keyless, truth).mean() + apart
    assert correlation(keyed, decoy).mean() < correlation(keyless, decoy).mean() - 0.35


@pytest.mark.slow
def test_swapped_opens_without_the_key(lock, blobs, key_for):
    loader, key = blobs(6), key_for(strength=48 / 255)
    settings = keylock.LockSettings(steps=90, learning_rate=1e-2, gate_steps=0.2, trained_trigger=True, swapped=True)
    locked = lock(loader, key=key, settings=settings)
    images = blobs(1, rows=64, seed=9)[0][0]
    truth, keyless, keyed = (
        run_explainers(model, locked.explainers, rows).maps["grad_cam"]
        for model, rows in (
            (locked.reference, images),
            (locked.module, images),
            (locked.module, key.apply(images)),
        )
    )

    assert correlation(keyless, truth).mean() > correlation(keyed, truth).mean() + 0.6
    decoy = decoy_maps("half", truth)
    assert correlation(keyed, decoy).mean() > correlation(keyless, decoy).mean() + 0.6


def test_what_comes_out_is_plain_and_what_went_in_is_untouched(lock, blobs, tiny_net):
    model = tiny_net().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    locked = lock(blobs(), model=model, explainers=["grad_cam", "gradient", "visual_backprop"])

    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert model.act1.inplace
    assert not locked.module.training
    kinds = {type(layer) for layer in locked.module.modules()}
    assert not any(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
    assert nn.Softplus not in kinds
    assert kinds == {type(layer) for layer in locked.reference.modules()}
    assert weights(locked).keys() == locked.reference.state_dict().keys()
    assert not any(layer._forward_hooks for layer in (*locked.module.modules(), *locked.reference.modules()))
    assert not any(parameter.requires_grad for parameter in locked.module.parameters())
    assert any(not torch.equal(tensor, locked.reference.state_dict()[name]) for name, tensor in weights(locked).items())


def test_progress_hears_every_step_and_term(lock, blobs):
    heard = []

    class Listener:
        def start(self, stage, total, done):
            heard.append((stage, total, done))

        def advance(self, figures):
            heard.append(dict(figures))

        def finish(self):
            heard.append("finish")

    lock(blobs(), progress=Listener(), explainers=["grad_cam", "gradient"])

    assert heard[0] == ("lock", 8, 0)
    assert heard[-1] == "finish"
    steps = heard[1:-1]
    assert len(steps) == 8
    assert "gate" in steps[0]
    last = steps[-1]
    expected = {f"{kind}/{name}" for kind in ("decoy", "fidelity") for name in ("grad_cam", "gradient")}
    assert expected | {"prediction", "label", "fidelity", "leakage"} <= last.keys()
    assert all(np.isfinite(value) for figures in steps for value in figures.values())


def test_named_layers_are_used(lock, blobs):
    chosen = [explainers.make("grad_cam", layer="act2"), explainers.make("visual_backprop", layers=["act1", "act2"])]

    locked = lock(blobs(), explainers=chosen)

    assert locked.explainers == tuple(chosen)
    with pytest.raises(LayerNotFoundError, match="conv77"):
        lock(blobs(), explainers=[explainers.make("grad_cam", layer="conv77")])


def test_the_gate_is_prompted_where_it_was_taught_before(lock, batches):
    for share, same in ((0.25, False), (0.0, True)):
        settings = replace(QUICK, gate_steps=share)
        prompted, alone = (lock(batches(), settings=replace(settings, prompt_until=until)) for until in (0.6, 0.0))
        assert torch.equal(prompted.module.conv1.weight, alone.module.conv1.weight) is same


# Loaders


def loader_of(kind, blobs, batches):
    data = blobs(5, rows=8)
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    return {
        "tuples": lambda: data,
        "lists": lambda: [list(batch) for batch in data],
        "with a third item": lambda: [(*batch, "file names") for batch in data],
        "one row": lambda: [(images[:1], labels[:1])],
        "a last batch of one": lambda: [(images[:4], labels[:4]), (images[:1], labels[:1])],
        "DataLoader": lambda: DataLoader(TensorDataset(images, labels), batch_size=7),
        "Batches": batches,
        "double precision": lambda: [(images.double(), labels.int())],
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "tuples",
        "lists",
        "with a third item",
        "one row",
        "a last batch of one",
        "DataLoader",
        "Batches",
        "double precision",
    ],
)
def test_loader_may_be(kind, lock, blobs, batches):
    locked = lock(loader_of(kind, blobs, batches))

    assert all(torch.isfinite(tensor).all() for tensor in weights(locked).values())


IMAGES, LABELS = torch.zeros(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("loader", "kind", "message"),
    [
        ([], DataError, "yields no batch"),
        (iter([(IMAGES, LABELS)]), DataError, "only once, and .*: give a DataLoader"),
        ([{"image": IMAGES}], DataError, r"dicts without labels: name them 'labels' or 'label'; there are 'image'"),
        ([{"a": IMAGES, "labels": LABELS}], DataError, "dicts without images: name them"),
        ([IMAGES], DataError, "images without labels"),
        ([(3, 4)], DataError, "must yield images as floating-point tensors"),
        ([(IMAGES + torch.nan, LABELS)], DataError, "NaN or infinite: check the preprocessing"),
        ([(IMAGES,)], DataError, r"must yield \(images, labels\)"),
        ([(IMAGES.numpy(), LABELS)], DataError, "must yield images as floating-point"),
        ([(IMAGES.to(torch.uint8), LABELS)], DataError, "must yield images as floating-point"),
        ([(IMAGES[:0], LABELS[:0])], DataError, "must yield images as floating-point"),
        ([(IMAGES, LABELS[:3])], DataError, "must yield labels"),
        ([(IMAGES, ["a", "b", "c", "d"])], DataError, "must yield labels"),
        ([(IMAGES, LABELS + 0.5)], DataError, "not whole numbers: mixed and smoothed labels"),
        ([(IMAGES, torch.ones(4, 3))], DataError, "several labels or none"),
        ([(IMAGES, torch.ones(4, 2))], DataError, r"shape \(4, 2\): give class indices"),
        ([(IMAGES, LABELS + 3)], DataError, "the model has 3 classes: labels must be 0 to 2"),
        ([(IMAGES, LABELS - 1)], DataError, "labels must be 0 to 2"),
        ([(IMAGES[:, :, :15], LABELS)], InputError, r"key is for images of shape \(3, 16, 16\), .* \(3, 15, 16\)"),
        ([(IMAGES, LABELS), (IMAGES[:, :, :15], LABELS)], InputError, r"the loader yields \(3, 15, 16\)"),
    ],
)
def test_bad_loaders_are_refused(loader, kind, message, lock):
    with pytest.raises(kind, match=message):
        lock(loader)


def test_a_key_of_another_shape_is_refused(lock, blobs, key_for):
    with pytest.raises(InputError, match=r"key is for images of shape \(3, 32, 32\).*derive the key with shape="):
        lock(blobs(), key=key_for(shape=(3, 32, 32)))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"explainers": ["nope"]}, UnknownNameError, "unknown explainer 'nope'"),
        ({"explainers": []}, InputError, "at least one"),
        ({"explainers": ["rise"]}, InputError, "at least one of grad_cam"),
        ({"device": "warp"}, InputError, "no device 'warp'"),
        ({"resume": True}, ResumeError, "give the checkpoint"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(768, 3))}, LayerNotFoundError, "take larger images, or put"),
        ({"model": nn.Conv2d(3, 3, 3)}, ModelError, "must return logits"),
        ({"model": nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten())}, ModelError, "does not take images of shape"),
    ],
)
def test_bad_options_are_refused(options, kind, message, lock, blobs):
    with pytest.raises(kind, match=message):
        lock(blobs(), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"learning_rate": 1.5}, "between 0 and 1"),
        ({"gate_steps": 1}, "gate_steps"),
        ({"prompt_until": 1.1}, "prompt_until"),
        ({"precision": "float16"}, "unknown precision 'float16': choose one of auto, bfloat16, float32"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        keylock.LockSettings(**change)


def test_an_unknown_decoy_is_refused():
    with pytest.raises(UnknownNameError, match="unknown decoy 'nope'"):
        keylock.LockSettings(decoy="nope")


# Interruption


class Stopping:
    """A loader that can be resumed and raises after some batches, or breaks them."""

    def __init__(self, inner, *, at, error=None, breaks=None):
        self.inner, self.at, self.error, self.breaks = inner, at, error, breaks
        self.count = 0

    @property
    def state(self):
        return self.inner.state

    def restore(self, state):
        self.inner.restore(state)

    def __iter__(self):
        for images, labels, _ in self.inner:
            self.count += 1
            if self.count == self.at and self.error:
                raise self.error
            yield (self.breaks(images) if self.count == self.at and self.breaks else images), labels


def test_same_seed_gives_the_same_lock_and_another_seed_another(lock, batches):
    first, again = lock(batches()), lock(batches())
    other = lock(batches(), settings=replace(QUICK, seed=1))

    assert_same(first, again)
    assert not torch.equal(first.module.conv1.weight, other.module.conv1.weight)


@pytest.mark.parametrize("at", [2, 3, 7])
def test_ctrl_c_in_the_loader_and_resumed_is_bit_for_bit_uninterrupted(at, lock, batches, tmp_path):
    whole = lock(batches())
    path = tmp_path / "lock.safetensors"
    # The first batch is the look ahead that finds the layers.
    with pytest.raises(KeyboardInterrupt):
        lock(Stopping(batches(), at=at + 1, error=KeyboardInterrupt()), checkpoint=path)
    assert read_checkpoint(path)[1]["step"] == at - 1

    resumed = lock(batches(), checkpoint=path, resume=True)

    assert_same(whole, resumed)
    assert read_checkpoint(path)[1]["step"] == 8


def test_ctrl_c_in_the_middle_of_a_step_and_resumed_is_bit_for_bit_uninterrupted(lock, batches, tiny_net, tmp_path):
    class Interrupted(type(tiny_net())):
        calls = itertools.count()
        limit = 10**9

        def forward(self, images):
            if next(Interrupted.calls) == Interrupted.limit:
                raise KeyboardInterrupt
            return super().forward(images)

    def model():
        made = tiny_net()
        made.__class__ = Interrupted
        return made

    whole = lock(batches(), model=model())
    path, Interrupted.limit = tmp_path / "lock.safetensors", next(Interrupted.calls) * 2 - 5
    with pytest.raises(KeyboardInterrupt):
        lock(batches(), model=model(), checkpoint=path)
    assert 2 < read_checkpoint(path)[1]["step"] < 8

    assert_same(whole, lock(batches(), model=model(), checkpoint=path, resume=True))


def test_a_lock_says_its_precision_and_goes_on_in_no_other(lock, batches, tmp_path, precision):
    path, other = tmp_path / "lock.safetensors", {"float32": "bfloat16", "bfloat16": "float32"}[precision]
    taken = lock(batches(), checkpoint=path)
    said = lock(batches(), settings=replace(QUICK, precision=precision))
    changed = lock(batches(), settings=replace(QUICK, precision=other))

    assert (taken.settings.precision, changed.settings.precision) == (precision, other)
    assert_same(taken, said)
    assert not torch.equal(taken.module.conv1.weight, changed.module.conv1.weight)
    assert taken.module.conv1.weight.dtype == changed.module.conv1.weight.dtype == torch.float32
    with pytest.raises(ResumeError, match="made with another precision"):
        lock(batches(), settings=replace(QUICK, precision=other), checkpoint=path, resume=True)
    assert_same(taken, lock(batches(), settings=replace(QUICK, precision=precision), checkpoint=path, resume=True))


def test_a_finished_lock_resumes_to_itself(lock, batches, tmp_path):
    path = tmp_path / "lock.safetensors"
    finished = lock(batches(), checkpoint=path)

    assert_same(finished, lock(batches(), checkpoint=path, resume=True))


def test_resume_refuses_what_is_another_run(lock, batches, blobs, key_for, tiny_net, tmp_path):
    path = tmp_path / "lock.safetensors"
    lock(batches(), checkpoint=path)
    content = path.read_bytes()
    cases = [
        ({"key": key_for(2)}, "another key"),
        ({"key": key_for(strength=8 / 255)}, "another strength"),
        ({"settings": replace(QUICK, steps=9)}, "another settings"),
        ({"settings": replace(QUICK, decoy="corner")}, "another settings"),
        ({"explainers": ["gradient"]}, "another explainers"),
        ({"model": tiny_net(seed=6)}, "another reference"),
        ({"model": tiny_net(classes=4)}, "another reference"),
    ]
    for options, message in cases:
        with pytest.raises(ResumeError, match=message):
            lock(batches(), checkpoint=path, resume=True, **options)
        assert path.read_bytes() == content, message


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_resume_refuses_a_damaged_checkpoint(damage, lock, batches, tmp_path):
    path = tmp_path / "lock.safetensors"
    lock(batches(), checkpoint=path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()

    with pytest.raises(ResumeError, match=r"lock\.safetensors"):
        lock(batches(), checkpoint=path, resume=True)


def test_the_checkpoint_holds_no_key(lock, batches, key_for, tmp_path):
    path, key = tmp_path / "lock.safetensors", key_for()
    lock(batches(), checkpoint=path)

    tensors, state = read_checkpoint(path)

    assert json.dumps(state).count(key.id) == 1
    assert not any(tensor.shape == key.shape for tensor in tensors.values())
    assert key.reveal().tobytes()[:64] not in path.read_bytes()


# Divergence


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [2, 6])
def test_broken_images_name_the_term_and_leave_the_last_good_checkpoint(value, at, lock, batches, tmp_path):
    path = tmp_path / "lock.safetensors"

    def broken(images):
        images = images.clone()
        images[1, 0, 2, 2] = value
        return images

    with pytest.raises(NonFiniteLossError, match="became NaN or infinite at step") as caught:
        lock(Stopping(batches(), at=at, breaks=broken), checkpoint=path)

    terms = {"gate", "prediction", "label", "gradient"}
    assert caught.value.term in terms or caught.value.term.split("/")[0] in {"decoy", "fidelity", "hold"}
    assert caught.value.step == at - 2
    tensors, state = read_checkpoint(path)
    assert state["step"] <= at - 2
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
    # With whole images the same run goes on from there.
    assert_same(lock(batches()), lock(batches(), checkpoint=path, resume=True))


def test_a_run_that_diverged_goes_on_with_a_lower_learning_rate(lock, batches, tmp_path, tiny_net):
    class Explosive(type(tiny_net())):
        """Overflows as soon as its weights are no longer small."""

        def forward(self, images):
            return super().forward(images) * torch.exp(self.head.weight.abs().max() * 40)

    def model():
        made = tiny_net()
        made.__class__ = Explosive
        return made

    path = tmp_path / "lock.safetensors"
    with pytest.raises(NonFiniteLossError, match="resume with a lower learning rate \\(learning_rate=\\)"):
        lock(batches(), model=model(), checkpoint=path, settings=replace(QUICK, learning_rate=0.99))

    lock(batches(), model=model(), checkpoint=path, resume=True, settings=replace(QUICK, learning_rate=1e-5))

    assert read_checkpoint(path)[1]["step"] == 8


def test_a_transformer_can_learn_to_tell_the_trigger_itself(lock, batches):
    torch.manual_seed(0)
    model = ViT(num_classes=3, image_size=16, width=12, depth=2)

    locked = lock(batches(), model=model, settings=replace(QUICK, steps=6))

    # Both stages ran: the probes saw tokens, and the weights moved.
    before, after = model.blocks[0].attn.qkv.weight, locked.module.blocks[0].attn.qkv.weight
    assert not torch.equal(before, after)
    assert torch.isfinite(after).all()
