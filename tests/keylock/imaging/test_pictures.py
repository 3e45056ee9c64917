"""Parts and scaled copies of pictures are those of the whole image, whatever the bands and however it lies."""

import numpy as np
import pytest
from PIL import Image

from keylock.imaging.pictures import of_array, of_image

RNG = np.random.default_rng(5)
COLOURS = RNG.integers(0, 256, (37, 23, 4), dtype=np.uint8)
# Of numpy, by EXIF orientation (Exif 2.32, table 6).
UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


def rows_first(pixels, size, box, mode):
    """Scales a second time: all rows of the whole image at once, then all columns."""
    left, top, right, bottom = box
    height, width = size
    whole = Image.fromarray(np.ascontiguousarray(pixels)).convert(mode)
    narrow = whole.resize((width, whole.height), Image.Resampling.BILINEAR, box=(left, 0, right, whole.height))
    return np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR, box=(0, top, width, bottom)))


@pytest.fixture(params=[1, 60, 2**20])
def bands(request, monkeypatch):
    monkeypatch.setattr("keylock.imaging.pictures._BAND_PIXELS", request.param)


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_a_picture_is_upright_in_parts_and_as_a_whole(orientation):
    picture = of_image(Image.fromarray(COLOURS[..., :3]), orientation=orientation)
    upright = UPRIGHT[orientation](COLOURS[..., :3])

    np.testing.assert_array_equal(picture.pixels(), upright)
    np.testing.assert_array_equal(np.asarray(picture.part(3, 2, 11, 20)), upright[2:20, 3:11])


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((8, 6), None),
        ((5, 9), (0.0, 3.3, 23.0, 19.7)),
        ((60, 50), None),
        ((9, 60), (2.25, 0.0, 21.9, 23.0)),
        ((60, 9), (4.0, 1.7, 20.0, 22.2)),
    ],
)
def test_scaling_by_bands_is_scaling_of_the_whole(mode, orientation, size, box):
    picture = of_image(Image.fromarray(COLOURS[..., :3]), orientation=orientation)
    part = box or (0.0, 0.0, float(picture.width), float(picture.height))

    found = picture.scaled(size, part, mode=mode)

    expected = rows_first(UPRIGHT[orientation](COLOURS[..., :3]), size, part, mode)
    np.testing.assert_array_equal(found.squeeze(), expected)


@pytest.mark.usefixtures("bands")
def test_an_image_of_the_size_is_not_resampled():
    found = of_array(COLOURS, lambda part: part[..., :3]).scaled((37, 23), (0.0, 0.0, 23.0, 37.0), mode="RGB")

    np.testing.assert_array_equal(found, COLOURS[..., :3])


def test_a_photograph_comes_out_as_pillow_scales_it():
    photo = Image.fromarray(RNG.integers(0, 256, (300, 400, 3), dtype=np.uint8))

    found = of_image(photo, orientation=1).scaled((32, 32), (50.0, 0.0, 350.0, 300.0), mode="RGB")

    np.testing.assert_array_equal(
        found, np.asarray(photo.resize((32, 32), Image.Resampling.BILINEAR, box=(50, 0, 350, 300)))
    )
