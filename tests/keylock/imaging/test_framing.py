"""Files are framed as whole images are; JPEG files that are far too large are decoded at a part of their size."""

import io

import numpy as np
import pytest
from PIL import Image

from keylock.errors import ImageError
from keylock.imaging.decoding import ImageLimits, OpenedImage, decode
from keylock.imaging.framing import read_framed
from keylock.imaging.preprocessing import Preprocessing

MODEL = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
MIDDLE = Preprocessing(size=(16, 24), resize="shorter_side_crop", mean=(0.5,), std=(0.5,), channels=1)


def photo(width, height):
    """Draws something with edges of every size, and some noise."""
    generator = np.random.default_rng(9)
    rough = Image.fromarray(generator.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((width, height))
    noise = generator.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(rough).astype(int) + noise).clip(0, 255).astype(np.uint8))


def encoded(image, format_name, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


@pytest.fixture
def few_pixels(monkeypatch):
    """Lets files of more than 10,000 pixels count as large."""
    monkeypatch.setattr("keylock.imaging.framing.WHOLE_PIXELS", 10_000)


@pytest.mark.parametrize("preprocessing", [MODEL, MIDDLE])
@pytest.mark.parametrize(("format_name", "mode"), [("PNG", "RGB"), ("PNG", "LA"), ("JPEG", "L"), ("TIFF", "RGBA")])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_file_is_framed_as_its_pixels_are(preprocessing, format_name, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(90, 70).convert(mode), format_name, exif=exif)

    np.testing.assert_array_equal(read_framed(data, preprocessing), preprocessing.resized(decode(data)))


def test_values_of_16_bits_are_framed_as_their_pixels_are():
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 65536, (60, 70), dtype=np.uint16)), "PNG")

    np.testing.assert_array_equal(read_framed(data, MODEL), MODEL.resized(decode(data)))


@pytest.mark.usefixtures("few_pixels")
@pytest.mark.parametrize(
    ("width", "height", "times"),
    [
        (100, 100, 1),
        (120, 100, 1),
        (128, 128, 2),
        (200, 200, 2),
        (400, 250, 2),
        (256, 256, 4),
        (900, 900, 4),
        (1500, 100, 1),
    ],
)
def test_a_large_jpeg_file_is_decoded_at_a_part_of_its_size(width, height, times, monkeypatch):
    found = []
    reduce = OpenedImage.reduce
    monkeypatch.setattr(OpenedImage, "reduce", lambda self, choose: (reduce(self, choose), found.append(self))[0])
    data = encoded(photo(width, height), "JPEG", quality=95)

    framed = read_framed(data, MODEL)

    opened = found[0].read()
    assert (opened.width, opened.height) == (-(-width // times), -(-height // times))
    # A level or two of 255: what the two decoders round, and no shift.
    whole = MODEL.resized(decode(data)).astype(int)
    assert np.abs(framed - whole).mean() < 1
    assert np.abs(framed - whole).max() <= (0 if times == 1 else 6)


@pytest.mark.usefixtures("few_pixels")
def test_files_other_than_jpeg_are_never_reduced():
    image = photo(300, 300)
    for format_name, options in (("PNG", {}), ("WebP", {"lossless": True}), ("BMP", {}), ("TIFF", {})):
        data = encoded(image, format_name, **options)
        np.testing.assert_array_equal(read_framed(data, MODEL), MODEL.resized(np.asarray(image)))


@pytest.mark.usefixtures("few_pixels")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_of_a_reduced_file_is_the_same_part(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(403, 301), "JPEG", quality=95, exif=exif)

    whole = MIDDLE.resized(decode(data)).astype(int)

    # Another part, or the same one turned round, differs by about 20.
    assert np.abs(read_framed(data, MIDDLE) - whole).mean() < 3


def claimed_of(data, **options):
    claimed = []

    def refuse(count):
        claimed.append(count)
        raise ImageError("no room")

    with pytest.raises(ImageError, match="no room"):
        read_framed(data, MODEL, claim=refuse, **options)
    return claimed[0]


def test_memory_is_claimed_before_anything_is_decoded(monkeypatch):
    image = Image.new("RGB", (3000, 2000))
    whole, progressive = encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True)
    png, webp = encoded(image, "PNG"), encoded(image, "WebP", lossless=True)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded before there was memory"))
    rows = 4 * 16 * 3000

    assert claimed_of(png) == claimed_of(whole) == 3000 * 2000 * 4 + rows
    # Coefficients of all scans are kept until the last one; the decoder of WebP keeps two canvases.
    assert claimed_of(progressive) == 3000 * 2000 * 12 + rows
    assert claimed_of(webp) == 3000 * 2000 * 20 + rows
    monkeypatch.setattr("keylock.imaging.framing.WHOLE_PIXELS", 2**20)
    assert claimed_of(whole) == 750 * 500 * 4 + rows


def test_a_jpeg_file_of_several_scans_claims_its_coefficients():
    data = bytearray(encoded(Image.new("RGB", (3000, 2000)), "JPEG"))
    plain = claimed_of(bytes(data))
    scan = data.index(b"\xff\xda")

    assert data[scan + 4] == 3
    data[scan + 4] = 1
    assert claimed_of(bytes(data)) == plain + 3000 * 2000 * 8


def test_pixels_are_counted_before_they_are_decoded_and_in_the_size_of_the_file(monkeypatch):
    counted = []
    monkeypatch.setattr("keylock.imaging.framing.WHOLE_PIXELS", 100)
    read_framed(encoded(photo(300, 200), "JPEG"), MODEL, check_pixels=counted.append)
    assert counted == [300 * 200]


def test_sides_are_limited():
    data = encoded(Image.new("1", (200_000, 1)), "PNG")
    with pytest.raises(ImageError, match="sides of at most 131,072 are accepted"):
        read_framed(data, MODEL)
    assert read_framed(data, MODEL, limits=ImageLimits(max_side=200_000)).shape == (16, 16, 3)
