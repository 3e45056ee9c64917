"""Image files of every kind decode to the pixels they show, and every bad one ends in one clear error."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from keylock.errors import ImageError
from keylock.imaging.decoding import ImageLimits, decode, to_rgb

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
SMOOTH = np.linspace(0, 255, 12 * 20 * 3).reshape(12, 20, 3).astype(np.uint8)


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """Writes a PNG file by hand, for what Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("format_name", "options"), [("PNG", {}), ("BMP", {}), ("WebP", {"lossless": True})])
def test_decode_returns_the_pixels_of_lossless_files(format_name, options):
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS), format_name, **options)), PIXELS)


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 95, "progressive": True}])
def test_decode_returns_nearly_the_pixels_of_jpeg_files(options):
    decoded = decode(encoded(Image.fromarray(SMOOTH), "JPEG", **options))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - SMOOTH).mean() < 6


def test_decode_reads_lossy_webp():
    decoded = decode(encoded(Image.fromarray(SMOOTH), "WebP", quality=90))
    assert decoded.shape == SMOOTH.shape


def test_decode_reads_a_gif_with_one_frame():
    grey = Image.fromarray(PIXELS[:, :, 0])
    np.testing.assert_array_equal(decode(encoded(grey, "GIF")), np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_decode_reads_grey_and_one_bit_images():
    grey = decode(encoded(Image.fromarray(PIXELS[:, :, 0]), "PNG"))
    np.testing.assert_array_equal(grey, np.repeat(PIXELS[:, :, :1], 3, axis=2))
    bits = PIXELS[:, :, 0] > 127
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits), "PNG"))[:, :, 1], bits * np.uint8(255))


def test_decode_reads_palette_images_by_colour_not_by_index():
    image = Image.fromarray(PIXELS).quantize(8)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(encoded(image, "PNG")), expected)


def test_decode_lays_transparent_pixels_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (0, 0, 0, 0)
    rgba[1, 0] = (0, 0, 0, 128)
    decoded = decode(encoded(Image.fromarray(rgba), "PNG"))
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert abs(int(decoded[1, 0, 0]) - 127) <= 1


def test_decode_honours_the_transparent_colour_of_a_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((1, 0), 1)
    decoded = decode(encoded(image, "PNG", transparency=0))
    assert decoded[0].tolist() == [[255, 255, 255], [200, 0, 0]]


def test_decode_reads_cmyk_jpeg_in_its_true_colours():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode(encoded(cmyk, "JPEG", quality=95)).reshape(-1, 3).mean(axis=0)
    assert red[0] > 240
    assert red[1] < 15
    assert red[2] < 15


def test_decode_keeps_the_high_byte_of_16_bit_grey():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values), "PNG"))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_decode_keeps_the_high_byte_of_16_bit_colour():
    row = b"\0" + struct.pack(">6H", 0, 256, 65535, 32768, 255, 512)
    assert decode(png(2, 1, 16, 2, row))[0].tolist() == [[0, 1, 255], [128, 0, 2]]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_decode_turns_images_upright(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(PIXELS), "PNG", exif=exif)), upright(PIXELS))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_decode_ignores_damaged_exif():
    data = encoded(Image.fromarray(SMOOTH), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert decode(data).shape == SMOOTH.shape


def test_decode_takes_the_photo_of_an_mpo_file():
    data = encoded(
        Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[Image.fromarray(SMOOTH[::2, ::2])], quality=95
    )
    assert decode(data).shape == SMOOTH.shape


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16"]
)
def test_to_rgb_takes_every_mode_of_pillow(mode):
    assert to_rgb(Image.new(mode, (4, 3))).shape == (3, 4, 3)


def test_to_rgb_refuses_an_image_without_pixels():
    with pytest.raises(ImageError, match="no pixels"):
        to_rgb(Image.new("RGB", (0, 4)))


def test_decode_refuses_an_empty_file():
    with pytest.raises(ImageError, match="empty"):
        decode(b"")


@pytest.mark.parametrize("data", [b"hello", b"%PDF-1.7 ...", b"<svg xmlns='x'/>"])
def test_decode_refuses_what_is_no_image(data):
    with pytest.raises(ImageError, match="send one of PNG, JPEG"):
        decode(data)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WebP", "BMP", "GIF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_decode_refuses_truncated_files(format_name, part):
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format_name)
    with pytest.raises(ImageError, match=r"damaged or truncated|no pixels"):
        decode(data[: int(len(data) * part)])


def test_decode_refuses_a_damaged_png():
    data = bytearray(encoded(Image.fromarray(PIXELS), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="damaged"):
        decode(bytes(data))


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WebP", "BMP", "GIF"])
def test_decode_raises_nothing_but_image_errors_on_damage(format_name):
    data = encoded(Image.fromarray(PIXELS), format_name)
    for _ in range(150):
        damaged = bytearray(data)
        for position in RNG.integers(0, len(data), 3):
            damaged[position] = RNG.integers(0, 256)
        try:
            decoded = decode(bytes(damaged), limits=ImageLimits(max_pixels=10_000))
        except ImageError:
            continue
        assert decoded.ndim == 3
        assert decoded.shape[2] == 3


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WebP"])
def test_decode_refuses_animations(format_name):
    frames = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)]
    data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="animated"):
        decode(data)


def test_decode_refuses_zero_pixels():
    with pytest.raises(ImageError, match="no pixels"):
        decode(png(0, 5, 8, 2, b""))


def test_decode_refuses_a_bomb_before_it_unfolds():
    bomb = png(60_000, 60_000, 8, 0, b"\0" * 1000)
    with pytest.raises(ImageError, match="60000 x 60000 pixels and at most 50,000,000"):
        decode(bomb)


def test_decode_refuses_a_webp_bomb_by_its_header():
    data = encoded(Image.new("RGB", (9, 9)), "WebP", lossless=True)
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\x00" + b"\xff\x3f\x00"
    body = b"WEBP" + chunk + data[12:]
    with pytest.raises(ImageError, match="16384 x 16384"):
        decode(b"RIFF" + struct.pack("<I", len(body)) + body)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"lossless": True, "exif": Image.Exif()}])
def test_decode_applies_the_pixel_limit_to_every_kind_of_webp(options):
    data = encoded(Image.fromarray(PIXELS), "WebP", **options)
    assert decode(data, limits=ImageLimits(max_pixels=240)).shape == PIXELS.shape
    with pytest.raises(ImageError, match="20 x 12"):
        decode(data, limits=ImageLimits(max_pixels=239))


def test_decode_refuses_too_many_bytes():
    with pytest.raises(ImageError, match="at most 10 are accepted"):
        decode(encoded(Image.fromarray(PIXELS), "PNG"), limits=ImageLimits(max_bytes=10))


def test_decode_says_that_a_whole_tiff_file_may_be_of_a_kind_that_is_not_read():
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "TIFF", tiffinfo={339: 6})
    with pytest.raises(ImageError, match="of a kind that is not read: send the whole file, or a PNG file"):
        decode(buffer.getvalue())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("transparent", [False, True])
def test_bands_change_no_pixel(mode, transparent, monkeypatch):
    generator = np.random.default_rng(4)
    colours = Image.fromarray(generator.integers(0, 256, (37, 23, 4), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(generator.integers(0, 65536, (37, 23), dtype=np.uint16))
    elif mode == "PA":
        image = colours.convert("RGB").quantize(64).convert("PA")
    elif mode == "P":
        image = colours.convert("RGB").quantize(64)
    else:
        image = colours.convert("RGB" if mode in ("CMYK", "YCbCr") else mode).convert(mode)
    if transparent and mode in ("L", "P", "RGB"):
        image.info["transparency"] = (1, 2, 3) if mode == "RGB" else 7
    whole = to_rgb(image, bits=16)
    monkeypatch.setattr("keylock.imaging.pictures._BAND_PIXELS", 50)
    assert np.array_equal(to_rgb(image, bits=16), whole)
    if mode != "I;16":
        expected = image
        if mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        assert np.array_equal(whole, np.asarray(expected.convert("RGB")))
