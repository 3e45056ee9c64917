"""Maps are scaled, resized, coloured and laid over images as documented; naive loops are the second opinion."""

import math

import numpy as np
import pytest
from PIL import Image

from keylock.errors import TensorError, UnknownNameError
from keylock.imaging.heatmaps import COLORMAPS, colourise, normalise, overlay, resize, viewing_scale


@pytest.fixture
def saliency():
    return np.random.default_rng(0).gamma(1.0, size=(5, 7)).astype(np.float32)


def test_normalise_spans_zero_to_one_and_keeps_the_order(saliency):
    scaled = normalise(saliency)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    assert (np.argsort(scaled, axis=None) == np.argsort(saliency, axis=None)).all()


def test_normalise_ignores_unit_and_offset(saliency):
    np.testing.assert_allclose(normalise(1e6 * saliency.astype(np.float64) + 3), normalise(saliency), atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 4.2, -1e30])
def test_normalise_makes_a_constant_map_zero(constant):
    assert not normalise(np.full((3, 3), constant)).any()


def test_normalise_survives_the_extremes_of_float32():
    extremes = np.array([[-3.4e38, 0.0, 3.4e38], [1e-45, 0.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(normalise(extremes)[0], [0, 0.5, 1])
    assert normalise(np.array([[0.0, 1e-45]], dtype=np.float32)).tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (np.zeros((2, 3, 4)), "height, width"),
        (np.zeros((0, 4)), "at least one pixel"),
        (np.array([[np.nan, 1]]), "NaN"),
        (np.array([[np.inf, 1]]), "infinity"),
        (np.array([["a"]]), "numbers"),
    ],
)
@pytest.mark.parametrize("function", [normalise, colourise, lambda m: resize(m, size=(4, 4))])
def test_unusable_maps_are_refused(function, bad, what):
    with pytest.raises(TensorError, match=what):
        function(bad)


def test_resize_agrees_with_naive_bilinear_interpolation(saliency):
    height, width = 13, 16
    expected = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            # Pixel centres, edges repeated.
            y = min(max((row + 0.5) * 5 / height - 0.5, 0), 4)
            x = min(max((column + 0.5) * 7 / width - 0.5, 0), 6)
            y0, x0 = math.floor(y), math.floor(x)
            y1, x1 = min(y0 + 1, 4), min(x0 + 1, 6)
            top = (1 - (x - x0)) * saliency[y0, x0] + (x - x0) * saliency[y0, x1]
            bottom = (1 - (x - x0)) * saliency[y1, x0] + (x - x0) * saliency[y1, x1]
            expected[row, column] = (1 - (y - y0)) * top + (y - y0) * bottom
    np.testing.assert_allclose(resize(saliency, size=(height, width)), expected, rtol=1e-5)


def test_resize_keeps_the_mean_when_it_shrinks():
    checks = np.indices((64, 64)).sum(axis=0) % 2
    np.testing.assert_allclose(resize(checks, size=(8, 8)), 0.5, atol=0.02)


def test_resize_refuses_an_empty_size(saliency):
    with pytest.raises(TensorError, match="0 x 4"):
        resize(saliency, size=(0, 4))


@pytest.mark.parametrize("name", sorted(COLORMAPS))
def test_a_colormap_runs_from_its_first_to_its_last_anchor_and_grows_brighter(name):
    ramp = np.linspace(0, 1, 256)[np.newaxis]
    colours = colourise(ramp, colormap=name)
    assert colours.dtype == np.uint8
    assert tuple(colours[0, 0]) == COLORMAPS[name][0]
    assert tuple(colours[0, -1]) == COLORMAPS[name][-1]
    luminance = colours[0].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -1.01).all()
    assert luminance[-1] - luminance[0] > 200


def test_an_unknown_colormap_is_answered_with_the_known_ones(saliency):
    with pytest.raises(UnknownNameError, match="ember, grey, ocean"):
        colourise(saliency, colormap="jet")


def test_overlay_leaves_cold_pixels_alone_and_colours_hot_ones():
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    saliency = np.zeros((8, 8))
    saliency[2, 5] = 3
    result = np.asarray(overlay(image, saliency, opacity=0.5))
    assert (np.delete(result.reshape(-1, 3), 2 * 8 + 5, axis=0) == 100).all()
    expected = (np.array(COLORMAPS["ember"][-1]) + 100) / 2
    np.testing.assert_allclose(result[2, 5], expected, atol=1)


def test_overlay_keeps_to_its_box(saliency):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    result = overlay(image, saliency, box=(5, 2, 25, 18))
    assert result.size == image.size
    changed = (np.asarray(result) != np.asarray(image)).any(axis=2)
    assert changed[2:18, 5:25].mean() > 0.8
    changed[2:18, 5:25] = False
    assert not changed.any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_overlay_takes_every_mode_of_pillow(mode, saliency):
    result = overlay(Image.new(mode, (9, 6)), saliency)
    assert (result.mode, result.size) == ("RGB", (9, 6))


@pytest.mark.parametrize("box", [(0, 0, 31, 20), (-1, 0, 5, 5), (5, 0, 5, 5), (6, 0, 5, 5), (0, 9, 5, 4)])
def test_overlay_refuses_a_box_outside_the_image(box, saliency):
    with pytest.raises(TensorError, match="30 x 20"):
        overlay(np.zeros((20, 30, 3), dtype=np.uint8), saliency, box=box)


def test_overlay_refuses_wrong_pixels_and_opacity(saliency):
    with pytest.raises(TensorError, match="float64"):
        overlay(np.zeros((4, 4, 3)), saliency)
    with pytest.raises(TensorError, match=r"\(4, 4, 4\)"):
        overlay(np.zeros((4, 4, 4), dtype=np.uint8), saliency)
    with pytest.raises(TensorError, match="opacity"):
        overlay(np.zeros((4, 4), dtype=np.uint8), saliency, opacity=1.5)


def test_overlay_enlarges_pixels_whole_and_the_map_smoothly(saliency):
    image = np.random.default_rng(1).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    plain = np.asarray(overlay(image, saliency, opacity=0, scale=5))
    np.testing.assert_array_equal(plain, image.repeat(5, axis=0).repeat(5, axis=1))
    boxed = np.asarray(overlay(image, saliency, box=(2, 1, 7, 6), scale=4))
    outside = np.ones((24, 36), dtype=bool)
    outside[4:24, 8:28] = False
    np.testing.assert_array_equal(boxed[outside], image.repeat(4, axis=0).repeat(4, axis=1)[outside])
    # Drawn at the larger size, and not drawn and then enlarged: neighbours within a pixel of the image differ.
    heat = np.asarray(overlay(np.zeros((2, 2, 3), np.uint8), np.array([[0.0, 1.0], [0.0, 1.0]]), scale=32))
    assert len(np.unique(heat[0, :, 0])) > 16


@pytest.mark.parametrize("scale", [0, -1, 65, 1.5, True, "2"])
def test_overlay_refuses_a_scale_that_is_none(scale, saliency):
    with pytest.raises(TensorError, match="scale"):
        overlay(np.zeros((4, 4, 3), np.uint8), saliency, scale=scale)


def test_overlay_refuses_to_make_a_gigantic_picture(saliency):
    with pytest.raises(TensorError, match="give a scale below 64"):
        overlay(np.zeros((2000, 2000), np.uint8), saliency, scale=64)


@pytest.mark.parametrize(
    ("size", "scale"), [((32, 32), 8), ((28, 28), 10), ((1, 1), 64), ((64, 300), 1), ((255, 20), 2), ((256, 256), 1)]
)
def test_a_scale_to_see_by_is_the_least_that_is_enough(size, scale):
    assert viewing_scale(*size) == scale
