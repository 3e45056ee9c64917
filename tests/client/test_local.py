"""A bundle on the customer's own machine: true maps for stamped images, decoys for others, no torch, no server."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import torch
from sealed_bundle import MEAN
from sealed_lock import STD

from keylock.bundle import open_bundle
from keylock.bundle.write import place
from keylock.errors import BundleError, InputError, TensorError, UnknownNameError
from keylock.explainers import make
from keylock.imaging.contrast import same_map
from keylock_client import LocalModel


@pytest.fixture
def model(sealed_bundle):
    with LocalModel(sealed_bundle.public, issuer=sealed_bundle.issuer) as model:
        yield model


@pytest.fixture
def image(sealed_lock):
    return sealed_lock.images[50].numpy()


def keyed(sealed_lock, image):
    return sealed_lock.key.apply(image[None])[0]


def in_torch(network, explainer, image):
    return explainer.explain(network, torch.from_numpy(image[None]), torch.tensor([-1])).maps[0].numpy()


@pytest.mark.parametrize("name", ["grad_cam", "occlusion", "smooth_grad"])
def test_a_stamped_image_gets_the_references_map_and_another_a_decoy(name, model, image, sealed_lock):
    entry = next(one for one in model.info.explainers if one.name == name)
    explainer = make(name, **entry.parameters)
    decoy = model.explain(image, explainer=name)
    true = model.explain(keyed(sealed_lock, image), explainer=name)
    assert (decoy.keyed, true.keyed) == (False, True)
    assert same_map(decoy.map, in_torch(sealed_lock.lock.module, explainer, image)) > 0.999
    assert same_map(true.map, in_torch(sealed_lock.lock.reference, explainer, image)) > 0.999
    assert true.explainer.parameters == entry.parameters
    assert not true.map.flags.writeable


def test_predictions_are_the_public_ones(model, image, sealed_lock):
    with torch.no_grad():
        expected = sealed_lock.lock.module(torch.from_numpy(image[None]))[0].numpy()
    np.testing.assert_allclose(model.predict(image).logits, expected, rtol=1e-4, atol=1e-5)
    stamped = keyed(sealed_lock, image)
    explanation = model.explain(stamped)
    assert explanation.prediction.logits == model.predict(stamped).logits
    assert not explanation.prediction.keyed
    assert explanation.usage.units == 0
    assert explanation.receipt is None


def test_a_copy_without_the_sealed_delta_predicts_and_shows_decoys(sealed_bundle, sealed_lock, image, model, tmp_path):
    with open_bundle(sealed_bundle.public, trusted=None) as bundle:
        files = bundle.all_files()
    del files["delta.sealed"]
    place(tmp_path / "less.klb", files)
    with LocalModel(tmp_path / "less.klb", issuer=sealed_bundle.issuer) as less:
        assert model.info.key_available
        assert not less.info.key_available
        stamped = keyed(sealed_lock, image)
        assert less.predict(stamped).logits == model.predict(stamped).logits
        assert not less.explain(stamped).keyed
        np.testing.assert_array_equal(less.explain(image).map, model.explain(image).map)


def test_several_images_are_told_apart(model, sealed_lock):
    mask = np.array([True, False, True])
    rows = sealed_lock.key.apply(sealed_lock.images[20:23].numpy(), mask)
    assert [one.keyed for one in model.explain(list(rows))] == mask.tolist()
    assert len(model.predict(list(rows))) == 3


def test_what_was_opened_is_let_go(model, image, sealed_lock):
    assert model.explain(keyed(sealed_lock, image)).keyed
    model.forget()
    assert not model.explain(image).keyed
    assert model.explain(keyed(sealed_lock, image)).keyed


def test_a_stamped_picture_in_a_file_opens_and_a_smaller_or_compressed_one_does_not(model, sealed_lock, tmp_path):
    std, mean = np.asarray(STD, np.float32)[:, None, None], np.asarray(MEAN, np.float32)[:, None, None]
    # Half as much contrast, so that hardly a pixel is clipped.
    pixels = np.rint(np.clip((sealed_lock.images[60].numpy() * std * 0.5 + mean) * 255, 0, 255)).astype(np.uint8)
    from keylock.trigger.stamping import stamp_pixels

    stamped = Image.fromarray(stamp_pixels(pixels.transpose(1, 2, 0), sealed_lock.key, model.info.preprocessing))
    stamped.save(tmp_path / "stamped.png")
    assert model.explain(tmp_path / "stamped.png").keyed
    stamped.save(tmp_path / "stamped.jpg", quality=60)
    stamped.resize((12, 12)).resize((16, 16)).save(tmp_path / "resized.png")
    model.forget()
    for name in ("stamped.jpg", "resized.png"):
        assert not model.explain(tmp_path / name).keyed


def test_a_class_by_name_or_number(model, image):
    assert model.explain(image, target="b").target.index == 1
    assert model.explain(image, target=2).target.label == "c"
    for wrong in ("d", 3, -1, True, 1.0):
        with pytest.raises(InputError):
            model.explain(image, target=wrong)


def test_bad_input_is_said_in_a_sentence(model, sealed_bundle, tmp_path):
    with pytest.raises(UnknownNameError, match="explainer"):
        model.explain(np.zeros((3, 16, 16), np.float32), explainer="gradcam")
    with pytest.raises(TensorError, match="shape"):
        model.explain(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(TensorError):
        model.explain(np.full((3, 16, 16), np.nan, np.float32))
    with pytest.raises(BundleError):
        LocalModel(tmp_path / "nothing.klb")
    from keylock.crypto.signing import SigningKey

    with pytest.raises(BundleError, match="trusted"):
        LocalModel(sealed_bundle.public, issuer=SigningKey.generate().verifying_key)


def test_it_draws_and_saves(model, image, sealed_lock, tmp_path):
    explanation = model.explain(keyed(sealed_lock, image))
    assert explanation.save(tmp_path / "why.png").is_file()
    assert explanation.to_dict()["keyed"] is True
    assert "LocalModel 'sealed'" in repr(model)


def test_it_needs_no_torch(sealed_bundle, image, sealed_lock, tmp_path):
    np.save(tmp_path / "image.npy", keyed(sealed_lock, image))
    program = (
        "import sys; sys.modules['torch'] = None; import numpy as np; from keylock_client import LocalModel\n"
        f"model = LocalModel({str(sealed_bundle.public)!r})\n"
        f"print([model.explain(np.load({str(tmp_path / 'image.npy')!r}), explainer=one.name).keyed "
        "for one in model.info.explainers])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[True, True, True]"
