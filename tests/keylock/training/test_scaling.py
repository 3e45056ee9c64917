"""What makes training fit a machine changes nothing of what comes out: parts, remembered maps, compiling, memory."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import keylock
from keylock.data.batches import Batches
from keylock.data.sets import Augmentation, ImageSet
from keylock.errors import InputError, OutOfMemoryError
from keylock.explainers import ClassActivations, GradCAM, Gradient, make_for
from keylock.imaging.preprocessing import Preprocessing
from keylock.locking.decoys import ImageDecoy
from keylock.models import find_layers, prepare
from keylock.training.checkpoint import read_checkpoint
from keylock.training.devices import compiled_where_possible
from keylock.training.input_key import InputKeyTrainer
from keylock.training.loop import memory_limits_named
from keylock.training.reference_maps import ReferenceMaps
from keylock.training.sealed import SealedTrainer
from keylock.training.task import Task

pytestmark = pytest.mark.usefixtures("precision")

SEALED = keylock.LockSettings(steps=4, leak_weight=0.0)
TRAINED = replace(SEALED, trained_trigger=True, gate_steps=0.5)


@pytest.fixture
def batches():
    pixels = np.random.default_rng(0).integers(0, 64, (24, 16, 16, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(24) % 3)
    preprocessing = Preprocessing(size=(16, 16), mean=(0.1,) * 3, std=(0.25,) * 3)

    def make(**options):
        return Batches(images, preprocessing, **{"batch_size": 8, "seed": 3, **options})

    return make


@pytest.fixture
def lock(tiny_net, key_for):
    def run(loader, **options):
        model = options.pop("model", None) or tiny_net()
        return keylock.lock(model, loader, key_for(), **{"settings": SEALED, "device": "cpu", **options})

    return run


ROUNDING = {"float32": 1e-4, "bfloat16": 3e-2}
"""How far sums of the same numbers in another order are apart, as a share of their size."""


def assert_close(first, second, tolerance):
    """Compare what training did to the weights, all in all.

    Adam makes a full step of a gradient that is nothing but rounding, so that single weights say little.
    """
    way = torch.cat([(t - first.reference.state_dict()[n]).flatten() for n, t in first.module.state_dict().items()])
    apart = torch.cat([(t - second.module.state_dict()[n]).flatten() for n, t in first.module.state_dict().items()])
    assert apart.norm() <= tolerance * way.norm()
    assert way.norm() > 0


# The eight rows have three for gradients of gradients, so that of four parts one has none.
@pytest.mark.parametrize(
    ("names", "accumulate"),
    [(["grad_cam", "rise"], 2), (["grad_cam", "gradient"], 2), (["grad_cam", "gradient"], 4)],
)
@pytest.mark.parametrize("settings", [SEALED, TRAINED], ids=["sealed", "trained"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    settings, names, accumulate, tiny_net, key_for, batches, precision
):
    images = torch.cat([images for images, _, _ in batches()])
    reference = prepare(tiny_net(), images)
    explainers = make_for(find_layers(reference, images[:2]), names)
    kind = InputKeyTrainer if settings.trained_trigger else SealedTrainer
    whole, parts = (
        kind(Task(reference, (key_for(),), explainers, images, chosen, torch.device("cpu")))
        for chosen in (settings, replace(settings, accumulate=accumulate))
    )
    gates = set()
    for (pixels, labels, indices), _ in zip(batches().stream(), range(settings.steps), strict=False):
        gates.add(getattr(getattr(whole, "gate", None), "over", None))
        # From the same state each time: Adam would make different weights of a difference in the last digit.
        parts.restore(whole.tensors(), step=whole.step)
        figures, others = whole.train_on(pixels, labels, indices), parts.train_on(pixels, labels, indices)

        assert figures.keys() == others.keys()
        for name, value in figures.items():
            assert others[name] == pytest.approx(value, rel=5 * ROUNDING[precision], abs=ROUNDING[precision]), name
        gradients = [[p.grad.flatten() for p in t.student.parameters() if p.requires_grad] for t in (whole, parts)]
        for expected, found in zip(*gradients, strict=True):
            size = max(expected.norm(), 1e-3 * torch.cat(gradients[0]).norm())
            assert (found - expected).norm() <= ROUNDING[precision] * size
    assert gates == ({False, True} if settings.trained_trigger else {None})


@pytest.mark.parametrize("settings", [SEALED, TRAINED], ids=["sealed", "trained"])
def test_remembered_maps_change_nothing_and_go_on_after_resuming(settings, lock, batches, tmp_path, precision):
    settings, names = replace(settings, steps=6), ["grad_cam", "gradient"]
    whole = lock(batches(), settings=settings, explainers=names)
    options = {"settings": settings, "explainers": names, "cache_reference": tmp_path / "maps"}
    remembered = lock(batches(), **options, checkpoint=tmp_path / "lock")
    tolerance = {"float32": 1e-2, "bfloat16": 0.1}[precision]
    assert_close(whole, remembered, tolerance)

    [file] = (tmp_path / "maps").iterdir()
    fingerprints = read_checkpoint(file)[0]["fingerprint"]
    assert fingerprints[:24].isfinite().sum() >= 20
    file.write_bytes(b"damaged")
    assert_close(whole, lock(batches(), **options), tolerance)


def test_each_unchanged_image_is_computed_once(tiny_net, batches, tmp_path):
    model, explainers = tiny_net(), (GradCAM("conv3"), Gradient())
    options = {"device": torch.device("cpu"), "precision": "auto"}
    maps, plain = (
        ReferenceMaps(model, explainers, **options, folder=tmp_path),
        ReferenceMaps(model, explainers, **options),
    )
    predicted = torch.full((8,), -1)

    def check(loader):
        before = maps.computed
        for images, _, indices in loader:
            logits, found = maps.explain(images, predicted, indices)
            expected, wanted = plain.explain(images, predicted)
            torch.testing.assert_close(logits, expected)
            for name in wanted:
                torch.testing.assert_close(found[name], wanted[name])
        return maps.computed - before

    assert check(batches()) == 24
    assert check(batches(seed=4)) == 0
    flipped = check(batches(augmentation=Augmentation(flip=True)))
    assert 4 < flipped < 20
    # Another class than the predicted one is computed anew and not remembered in its place.
    images, _, indices = next(iter(batches()))
    maps.explain(images, torch.zeros(8, dtype=torch.int64), indices)
    assert check(batches()) <= flipped
    # Maps that it was not made for are computed as well, and not remembered.
    passing = ClassActivations("conv3", (2, 0))
    _, found = maps.explain(images, predicted, indices, explainers=(explainers[0], passing))
    _, expected = plain.explain(images, predicted, explainers=(passing,))
    torch.testing.assert_close(found["class_activations"], expected["class_activations"])
    assert list(found) == ["grad_cam", "class_activations"]
    maps.keep()
    again = ReferenceMaps(model, explainers, **options, folder=tmp_path)
    again.explain(images, predicted, indices)
    assert again.computed == 0


def test_compiling_changes_nothing_and_is_left_out_where_it_fails(tiny_net, caplog):
    model, images = tiny_net(), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    with caplog.at_level(logging.WARNING):
        run = compiled_where_possible(model, backend="eager")
        torch.testing.assert_close(run(images), expected)
        assert not caplog.records
        run = compiled_where_possible(model, backend="no-such-compiler")
        torch.testing.assert_close(run(images), expected)
        torch.testing.assert_close(run(images), expected)
    assert [record.message for record in caplog.records] == ["not compiled (InvalidBackend): going on without"]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_says_what_to_try_and_loses_nothing(error, lock, batches, tiny_net, tmp_path):
    class Small(type(tiny_net())):
        fits = 100

        def forward(self, images):
            if images.requires_grad and len(images) > Small.fits:
                raise error
            return super().forward(images)

    def model():
        made = tiny_net()
        made.__class__ = Small
        return made

    path, whole = tmp_path / "lock", lock(batches(), model=model())

    class Shrinking(keylock.training.Silent):
        def advance(self, figures):
            Small.fits = 6

    with pytest.raises(OutOfMemoryError, match=r"batch of 8 images .* try batch_size=4, or accumulate=2"):
        lock(batches(), model=model(), checkpoint=path, progress=Shrinking())
    assert read_checkpoint(path)[1]["step"] == 1
    Small.fits = 100
    assert_close(whole, lock(batches(), model=model(), checkpoint=path, resume=True), tolerance=0)


@pytest.mark.parametrize("change", [{"accumulate": 0}, {"search_every": -1}, {"search_steps": 0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        keylock.LockSettings(**change)


def test_settings_name_their_decoy_and_say_which_picture_it_is():
    picture = ImageDecoy(np.tri(4, 6, dtype=np.float32))
    described = replace(SEALED, decoy=picture).as_dict()

    assert described["decoy"] == "image"
    assert described["decoy_parameters"] == picture.parameters
    json.dumps(described)
    assert replace(SEALED, decoy="targeted").as_dict()["decoy"] == "half"
    assert "decoy_parameters" not in SEALED.as_dict()


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="mine"), memory_limits_named(8, parts=1):
        raise RuntimeError("mine")
