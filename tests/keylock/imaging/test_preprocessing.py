"""Preprocessing gives the tensor a naive computation gives, and refuses what it cannot use."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from keylock.errors import TensorError
from keylock.imaging.preprocessing import Preprocessing

RNG = np.random.default_rng(3)
RGB = Preprocessing(size=(8, 6), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
GREY = Preprocessing(size=(8, 6), channels=1, mean=(0.5,), std=(0.5,))


def pixels(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_of_the_right_size_is_normalised_without_resampling():
    image = pixels(8, 6)
    tensor = RGB(image)
    assert tensor.shape == RGB.shape == (3, 8, 6)
    assert tensor.dtype == np.float32
    for c in range(3):
        expected = (image[:, :, c] / 255 - RGB.mean[c]) / RGB.std[c]
        np.testing.assert_allclose(tensor[c], expected, atol=1e-5)


@pytest.mark.parametrize("preprocessing", [RGB, GREY])
def test_denormalise_undoes_the_normalisation(preprocessing):
    batch = np.stack([preprocessing(pixels(8, 6)) for _ in range(3)])
    restored = preprocessing.denormalise(batch)
    assert restored.shape == (3, 8, 6, preprocessing.channels)
    again = np.stack([preprocessing(image) for image in restored])
    np.testing.assert_allclose(again, batch, atol=1e-5)


def test_exact_stretches_as_pillow_does_rows_first():
    image = pixels(31, 17)
    narrow = Image.fromarray(image).resize((6, 31), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(RGB.resized(image), np.asarray(narrow.resize((6, 8), Image.Resampling.BILINEAR)))
    # Which way Pillow goes first depends on its version and the sizes, and is a level of 255 at most.
    at_once = np.asarray(Image.fromarray(image).resize((6, 8), Image.Resampling.BILINEAR))
    assert np.abs(RGB.resized(image).astype(int) - at_once).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(40, 30), (80, 30), (20, 45), (5, 3), (7, 200)])
def test_shorter_side_crop_keeps_the_middle(height, width):
    preprocessing = RGB.model_copy(update={"resize": "shorter_side_crop"})
    ramp = np.linspace(0, 255, width).astype(np.uint8)[None, :, None] * np.ones((height, 1, 3), np.uint8)
    resized = preprocessing.resized(ramp)
    assert resized.shape == (8, 6, 3)
    scale = max(8 / height, 6 / width)
    visible = 6 / scale / width
    middle = resized[:, :, 0].astype(float)
    assert abs(middle.mean() - 127) < 4
    if width >= 30:
        spread = np.median(middle[:, -1]) - np.median(middle[:, 0])
        assert spread == pytest.approx(255 * visible * 5 / 6, rel=0.15, abs=4)


def test_shorter_side_crop_of_a_very_long_image_stays_small():
    preprocessing = RGB.model_copy(update={"resize": "shorter_side_crop"})
    assert preprocessing.resized(np.zeros((1, 2_000_000, 3), np.uint8)).shape == (8, 6, 3)


def test_grey_input_and_grey_models():
    grey = RNG.integers(0, 256, (8, 6), dtype=np.uint8)
    np.testing.assert_array_equal(GREY.resized(grey)[:, :, 0], grey)
    np.testing.assert_array_equal(GREY(grey), GREY(grey[:, :, None]))
    np.testing.assert_array_equal(GREY(grey), GREY(np.repeat(grey[:, :, None], 3, axis=2)))
    np.testing.assert_array_equal(RGB.resized(grey), np.repeat(grey[:, :, None], 3, axis=2))


def test_colour_becomes_luma_for_grey_models():
    image = pixels(8, 6)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(GREY.resized(image)[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((8, 6, 3), np.float32),
        np.zeros((8, 6, 4), np.uint8),
        np.zeros((2, 8, 6, 3), np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        np.zeros(6, np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_pixels_of_the_wrong_kind_are_refused(bad):
    with pytest.raises(TensorError):
        RGB(bad)


def test_check_passes_a_good_tensor_and_refuses_the_others():
    good = RGB(pixels(8, 6))
    assert RGB.check(good) is good
    for bad, match in [
        (good.astype(np.float64), "float32"),
        (good[:, :7], r"shape \(3, 8, 6\)"),
        (np.full_like(good, np.nan), "NaN"),
        (np.full_like(good, np.inf), "NaN or infinite"),
    ]:
        with pytest.raises(TensorError, match=match):
            RGB.check(bad)


def test_denormalise_refuses_other_channels():
    with pytest.raises(TensorError):
        RGB.denormalise(np.zeros((1, 8, 6), np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"std": (0.2, 0.0, 0.5)},
        {"std": (0.2,)},
        {"mean": (0.1, float("nan"), 0.1)},
        {"size": (0, 6)},
        {"channels": 4},
        {"resize": "stretch"},
        {"colour": "bgr"},
    ],
)
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValidationError):
        Preprocessing.model_validate(RGB.model_dump() | change)


def test_json_round_trip_is_exact():
    assert Preprocessing.model_validate_json(RGB.model_dump_json()) == RGB
