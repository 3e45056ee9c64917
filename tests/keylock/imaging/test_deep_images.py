"""Images with more than eight bits: scaled as somebody states, never silently dark."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from keylock.errors import ImageError, InputError
from keylock.imaging.decoding import ImageLimits, decode, measure, to_rgb
from keylock.imaging.grey_levels import GreyLevels, agree_on_bits, check_bits, fewest_bits, to_8_bits

RNG = np.random.default_rng(11)
GREY = RNG.integers(0, 256, (6, 9)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)
GREY[0, 0] = COLOUR[0, 0] = 255


def spread(pixels, bits):
    """Values of which the highest eight of so many bits are the pixels."""
    noise = RNG.integers(0, 2 ** (bits - 8), pixels.shape)
    return (pixels.astype(np.uint16) << (bits - 8) | noise).astype(np.uint16)


def png16(values, *, sbit=None):
    kind = {1: 0, 3: 2, 4: 6, 2: 4}[1 if values.ndim == 2 else values.shape[2]]

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = values.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    channels = 1 if values.ndim == 2 else values.shape[2]
    said = b"" if sbit is None else chunk(b"sBIT", bytes([sbit] * channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + header + said + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values, *, order="<", photometric=1, bits=16, further=()):
    """Writes a TIFF file of one strip by hand (TIFF 6.0, section 8), for what Pillow does not write."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    data = values.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: [bits] * channels, 259: 1, 262: photometric, 277: channels, 278: height}
    tags |= {273: 0, 279: len(data)} | dict(further)
    body, entries = b"", []
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, list) else [value]
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", start + len(body))
            body += packed
        else:
            place = packed
        entries.append((tag, len(numbers), place))
    packed = b"".join(
        struct.pack(f"{order}HHI", tag, 4, count)
        + (struct.pack(f"{order}I", start + len(body)) if tag == 273 else place)
        for tag, count, place in entries
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", len(entries)) + packed + bytes(4) + body + data


def tiff(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def grey_of(data, **options):
    return decode(data, **options)[..., 0]


FILES = {
    "png": png16,
    "tiff": lambda values: tiff16(values, photometric=1 if values.ndim == 2 else 2),
    "tiff, big-endian": lambda values: tiff16(values, order=">", photometric=1 if values.ndim == 2 else 2),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_stated_bits_scale_grey_and_colour(write, bits):
    np.testing.assert_array_equal(grey_of(write(spread(GREY, bits)), bits=bits), GREY)
    np.testing.assert_array_equal(decode(write(spread(COLOUR, bits)), bits=bits), COLOUR)


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_values_that_would_be_dark_are_refused_with_a_question(write, bits):
    for pixels in (GREY, COLOUR):
        with pytest.raises(ImageError, match=rf"nearly black: say how many bits they have .*; {bits} would fit"):
            decode(write(spread(pixels, bits)))


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_values_of_16_bits_need_no_statement(write):
    np.testing.assert_array_equal(grey_of(write(spread(GREY, 16))), GREY)
    np.testing.assert_array_equal(decode(write(spread(COLOUR, 16))), COLOUR)


def test_a_black_image_is_black_on_any_scale():
    assert not decode(png16(np.zeros((4, 4), np.uint16))).any()


def test_a_dark_image_is_taken_as_it_is_where_somebody_says_so():
    assert grey_of(png16(np.full((4, 4), 4095, np.uint16)), bits=16).max() == 15


def test_values_beyond_the_stated_bits_are_refused():
    with pytest.raises(ImageError, match="values up to 4,096, which 12 bits do not hold"):
        decode(png16(np.full((4, 4), 4096, np.uint16)), bits=12)


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_png_file_may_state_its_bits(pixels):
    np.testing.assert_array_equal(decode(png16(spread(pixels, 12), sbit=12)), decode(png16(spread(pixels, 16))))
    # By the book, a file with significant bits has its values scaled to all 16, and is no darker for it.
    np.testing.assert_array_equal(decode(png16(spread(pixels, 16), sbit=12)), decode(png16(spread(pixels, 16))))


SCALED = {
    "shifted": lambda original, bits: original << (16 - bits),
    "repeated": lambda original, bits: original << (16 - bits) | original >> (2 * bits - 16),
    "rounded": lambda original, bits: np.rint(original * 65535 / (2**bits - 1)).astype(np.uint16),
    "cut off": lambda original, bits: (original * 65535 // (2**bits - 1)).astype(np.uint16),
}


@pytest.mark.parametrize("scale", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 3), (16, 24, 4)], ids=str)
def test_dark_values_that_a_png_writer_scaled_to_16_bits_are_not_brightened(scale, bits, shape):
    bright = RNG.integers(0, 2**bits, shape)
    dark = RNG.integers(0, 2 ** (2 * bits - 16) + 1, shape) // 2
    if len(shape) == 3 and shape[2] == 4:
        dark[..., 3] = bright[..., 3] = 2**bits - 1

    for original in (dark, bright):
        file = png16(scale(original, bits), sbit=bits)
        levels = measure(file)
        assert levels.fitting_bits is None
        np.testing.assert_array_equal(
            decode(file, bits=16), decode(png16(scale(original, bits).astype(np.uint16)), bits=16)
        )
    red = bright if len(shape) == 2 else bright[..., 0]
    np.testing.assert_array_equal(grey_of(png16(scale(bright, bits), sbit=bits)), red >> (bits - 8))
    if scale(dark, bits)[..., :3].max() < 2**14:
        with pytest.raises(ImageError, match="nearly black: say how many bits"):
            decode(png16(scale(dark, bits), sbit=bits))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_significant_bits_count_beside_values_that_were_not_scaled(bits):
    original = RNG.integers(0, 2**bits, (16, 24)).astype(np.uint16)
    np.testing.assert_array_equal(grey_of(png16(original, sbit=bits)), original >> (bits - 8))
    # Nor do they of an image that is dark on the scale of the camera.
    assert measure(png16(original // 8 | 1, sbit=bits)).stated_bits == bits


def test_eight_bits_in_the_upper_half_of_a_scale_are_asked_about():
    with pytest.raises(ImageError, match="nearly black: say how many bits"):
        decode(png16(GREY.astype(np.uint16) << 4, sbit=12))


def test_the_highest_value_that_a_tiff_file_uses_is_no_scale():
    dark = np.full((4, 4), 3000, np.uint16)
    assert measure(tiff16(dark, further={281: 3000})).stated_bits is None
    with pytest.raises(ImageError, match="nearly black: say how many bits"):
        decode(tiff16(dark, further={281: 3000}))


def test_a_tiff_file_may_state_its_bits():
    assert measure(tiff16(spread(GREY, 12), further={281: 4095})).stated_bits == 12
    np.testing.assert_array_equal(grey_of(tiff16(spread(GREY, 12), further={281: 4095})), GREY)
    np.testing.assert_array_equal(grey_of(tiff16(spread(GREY, 10), further={341: 1023})), GREY)


def test_tiff_files_with_white_at_zero_are_turned_round():
    np.testing.assert_array_equal(grey_of(tiff16(65535 - spread(GREY, 16), photometric=0)), GREY)
    inverted = tiff16(4095 - spread(GREY, 12), photometric=0, further={281: 4095})
    np.testing.assert_array_equal(grey_of(inverted), GREY)
    eight = tiff(Image.fromarray(255 - GREY), tiffinfo={262: 0})
    assert decode(eight).shape == (6, 9, 3)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_files_are_read(compression):
    np.testing.assert_array_equal(decode(tiff(Image.fromarray(COLOUR), compression=compression)), COLOUR)
    np.testing.assert_array_equal(grey_of(tiff(Image.fromarray(GREY), compression=compression)), GREY)
    np.testing.assert_array_equal(
        grey_of(tiff(Image.fromarray(spread(GREY, 12)), compression=compression), bits=12), GREY
    )


def test_tiff_files_of_other_colours_are_read():
    palette = Image.fromarray(COLOUR).quantize(8)
    np.testing.assert_array_equal(decode(tiff(palette)), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(grey_of(tiff(Image.fromarray(GREY > 127))), (GREY > 127) * np.uint8(255))
    red = decode(tiff(Image.new("CMYK", (4, 4), (0, 255, 255, 0))))
    assert red[0, 0].tolist() == [255, 0, 0]
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode(tiff(clear))[0, 0].tolist() == [255, 255, 255]


def test_tiff_files_are_turned_upright_once():
    turned = tiff(Image.fromarray(COLOUR), tiffinfo={274: 6})
    np.testing.assert_array_equal(decode(turned), np.rot90(COLOUR, -1))
    deep = tiff16(spread(COLOUR, 16), photometric=2, further={274: 6})
    np.testing.assert_array_equal(decode(deep), np.rot90(COLOUR, -1))


def test_tiff_files_with_several_pages_are_refused():
    pages = tiff(Image.fromarray(GREY), save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(ImageError, match="several pages: send a single one"):
        decode(pages)


def test_smaller_copies_in_a_tiff_file_are_no_pages():
    small = Image.fromarray(GREY[::2, ::2])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    pages = tiff(Image.fromarray(GREY), save_all=True, append_images=[small])
    np.testing.assert_array_equal(grey_of(pages), GREY)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (tiff(Image.fromarray(GREY.astype(np.float32))), "floating-point values"),
        (tiff(Image.fromarray(GREY.astype(np.int32))), "more than 16 bits in a channel"),
        (tiff16(spread(GREY, 16), further={339: 2}), "values with a sign"),
        (tiff16(spread(COLOUR, 16), photometric=2, further={284: 2}), "cannot be decoded|a layout that is not read"),
        (png16(np.stack([spread(GREY, 12)] * 2, axis=-1)), "a layout that is not read"),
    ],
)
def test_what_has_no_scale_is_refused(data, says):
    with pytest.raises(ImageError, match=says):
        decode(data)


def test_transparent_pixels_of_16_bits_lie_over_white():
    values = np.zeros((1, 3, 4), np.uint16)
    values[0, :, 0] = 65535
    values[0, :, 3] = (0, 32768, 65535)
    assert decode(png16(values))[0].tolist() == [[255, 255, 255], [255, 127, 127], [255, 0, 0]]


def test_a_tiff_bomb_is_refused_before_it_unfolds():
    small = tiff16(spread(GREY, 16), further={256: 60_000, 257: 60_000})
    with pytest.raises(ImageError, match="60000 x 60000 pixels"):
        decode(small)
    tiles = tiff16(spread(GREY, 16), further={322: 60_000, 323: 60_000})
    with pytest.raises(ImageError, match="60000 x 60000 pixels"):
        decode(tiles)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_damage_raises_nothing_but_image_errors(write):
    data = write(spread(COLOUR, 16))
    for _ in range(150):
        damaged = bytearray(data)
        for position in RNG.integers(0, len(data), 3):
            damaged[position] = RNG.integers(0, 256)
        try:
            decoded = decode(bytes(damaged), limits=ImageLimits(max_pixels=10_000), bits=16)
        except ImageError:
            continue
        assert decoded.ndim == 3
        assert decoded.dtype == np.uint8


def test_an_image_to_look_at_may_be_guessed():
    np.testing.assert_array_equal(grey_of(png16(spread(GREY, 12)), guess=True), GREY)


def test_pillow_images_of_16_bits_follow_the_same_rule():
    image = Image.fromarray(spread(GREY, 12))
    np.testing.assert_array_equal(to_rgb(image, bits=12)[..., 0], GREY)
    with pytest.raises(ImageError, match="nearly black"):
        to_rgb(image)


@pytest.mark.parametrize("bits", [7, 17, 12.0, "12", True])
def test_bits_are_whole_numbers_in_range(bits):
    with pytest.raises(InputError, match="8 to 16"):
        check_bits(bits)


def test_images_agree_on_one_scale():
    low, high = GreyLevels(4000), GreyLevels(60_000)
    assert agree_on_bits([low, high], whose="x has") == 16
    assert agree_on_bits([GreyLevels(4000, 12), GreyLevels(100, 12), GreyLevels(4095)], whose="x has") == 12
    # A dark image among those that state their significant bits and use all 16 stays dark.
    with_void = [GreyLevels(60_000, 12), GreyLevels(3000, 12)]
    assert agree_on_bits(with_void, whose="x has") == 16
    for unclear in ([low], [GreyLevels(900, 10), GreyLevels(4000, 12)], [GreyLevels(4000, 12), high]):
        with pytest.raises(ImageError, match="x has"):
            agree_on_bits(unclear, whose="x has")


def test_the_fewest_bits_hold_the_value():
    assert [fewest_bits(value) for value in (0, 255, 256, 1023, 4095, 4096, 65535)] == [8, 8, 10, 10, 12, 14, 16]


def test_negative_values_have_no_scale():
    with pytest.raises(ImageError, match="negative"):
        to_8_bits(np.array([-1]), bits=12)
