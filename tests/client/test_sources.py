"""Images in every form users have them arrive at the server as the same pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from keylock.errors import ImageError, InputError, TensorError
from keylock.imaging.decoding import decode
from keylock.imaging.preprocessing import Preprocessing
from keylock_client._sources import read_source, read_sources

PREPROCESSING = Preprocessing(size=(8, 8), resize="shorter_side_crop", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8)


def sent(image):
    [source], single = read_sources(image)
    assert single
    return source.message()


def test_all_forms_of_one_image_arrive_alike(pixels, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    forms = [
        path,
        str(path),
        path.read_bytes(),
        memoryview(path.read_bytes()),
        Image.open(path),
        pixels,
        pixels[::-1][::-1],
    ]
    for form in forms:
        np.testing.assert_array_equal(decode(sent(form).encoded), pixels)


def test_a_file_travels_as_it_is(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"not even an image")
    assert sent(path).encoded == b"not even an image"


def test_grey_pixels_and_pillow_modes_become_rgb(pixels):
    grey = pixels[..., 0]
    np.testing.assert_array_equal(decode(sent(grey).encoded), np.stack([grey] * 3, axis=2))
    for mode in ("L", "P", "RGBA", "CMYK", "I;16", "1"):
        assert decode(sent(Image.new(mode, (5, 4))).encoded).shape == (4, 5, 3)


def test_a_pillow_image_is_turned_upright_like_its_file(pixels, tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    upright = decode(path.read_bytes())
    assert upright.shape == (14, 9, 3)
    np.testing.assert_array_equal(decode(sent(Image.open(path)).encoded), upright)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_travel_as_float32(dtype):
    array = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(dtype)
    tensor = sent(array).tensor
    assert list(tensor.shape) == [3, 8, 8]
    np.testing.assert_array_equal(np.frombuffer(tensor.data, "<f4").reshape(3, 8, 8), array.astype(np.float32))


def test_batches_and_sequences_are_lists(pixels):
    batch = np.zeros((4, 3, 8, 8), dtype=np.float32)
    for several, count in ((batch, 4), ([pixels], 1), ((pixels, pixels), 2), (np.stack([pixels] * 3), 3)):
        sources, single = read_sources(several)
        assert (len(sources), single) == (count, False)


class Foreign:
    """An array of another library, as torch's tensors are."""

    def __init__(self, array):
        self.array, self.ndim = array, array.ndim

    def __array__(self, dtype=None, copy=None):
        if self.array.dtype == object:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.array


def test_arrays_of_other_libraries_are_read_or_refused(pixels):
    np.testing.assert_array_equal(decode(sent(Foreign(pixels)).encoded), pixels)
    assert len(read_sources(Foreign(np.zeros((2, 3, 8, 8))))[0]) == 2
    for shape in ((3, 8, 8), (2, 3, 8, 8)):
        with pytest.raises(TensorError, match="detach"):
            read_sources(Foreign(np.zeros(shape, dtype=object)))


@pytest.mark.parametrize(
    ("bad", "error", "what"),
    [
        ("gone.png", ImageError, r"cannot read the image 'gone\.png': No such file"),
        ("https://example.com/cat.png", ImageError, "download"),
        ("nul\0byte", ImageError, "not a path"),
        ("", ImageError, "cannot read"),
        (".", ImageError, "directory"),
        (np.zeros((4, 4, 4), np.uint8), TensorError, r"\(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.int64), TensorError, "int64"),
        (np.zeros((4, 4), np.float32), TensorError, r"\(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), TensorError, r"\(0, 4, 3\)"),
        (np.full((3, 4, 4), np.nan), TensorError, "NaN"),
        (np.full((3, 4, 4), 1e300), TensorError, "infinite"),
        (None, InputError, "NoneType"),
        (7, InputError, "int"),
        ({"a": 1}, InputError, "dict"),
        ([], InputError, "at least one"),
        (np.zeros((0, 3, 8, 8)), InputError, "at least one"),
        ([b"x", 7], InputError, "image 2 of 2"),
        ([[b"x"]], InputError, "image 1 of 1 is of type list"),
    ],
)
def test_what_is_no_image_is_refused_before_anything_is_sent(bad, error, what):
    with pytest.raises(error, match=what):
        read_sources(bad)


def test_an_empty_file_is_refused_by_name(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(ImageError, match=r"empty\.png' is empty"):
        read_sources([path])


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (8, 8), (1, 500), (500, 1)])
def test_the_box_is_what_the_model_sees(shape):
    pixels = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    shown, (left, upper, right, lower) = read_sources(pixels)[0][0].pixels(PREPROCESSING)
    np.testing.assert_array_equal(shown, pixels)
    assert 0 <= left < right <= shape[1]
    assert 0 <= upper < lower <= shape[0]
    before = PREPROCESSING(pixels)
    outside = np.ones(shape, dtype=bool)
    outside[upper:lower, left:right] = False
    pixels[outside] = 255 - pixels[outside]
    np.testing.assert_array_equal(PREPROCESSING(pixels), before)


def test_a_tensor_is_shown_as_the_picture_it_came_from():
    picture = np.random.default_rng(2).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    shown, box = read_sources(PREPROCESSING(picture))[0][0].pixels(PREPROCESSING)
    np.testing.assert_array_equal(shown, picture)
    assert box == (0, 0, 8, 8)


def test_pixels_travel_as_png(pixels):
    assert Image.open(io.BytesIO(sent(pixels).encoded)).format == "PNG"


DEEP = np.arange(12 * 20).reshape(12, 20).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_of_12_bits_is_scaled_here_where_its_bits_are_stated(tmp_path, suffix):
    path = tmp_path / f"scan.{suffix}"
    Image.fromarray(DEEP.astype(np.uint16) << 4).save(path)

    stated = read_source(path, "x", bits=12)
    travelling = read_source(path, "x")

    np.testing.assert_array_equal(stated.rgb[..., 0], DEEP)
    assert travelling.encoded == path.read_bytes()
    # What an explanation is drawn on may be guessed.
    np.testing.assert_array_equal(travelling.pixels(PREPROCESSING)[0][..., 0], DEEP)


def test_pixels_of_16_bits_travel_as_they_are_or_scaled():
    deep = DEEP.astype(np.uint16) << 4
    for image in (deep, Image.fromarray(deep)):
        travelling = read_source(image, "x")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(travelling.encoded))), deep)
        np.testing.assert_array_equal(read_source(image, "x", bits=12).rgb[..., 0], DEEP)
    colour = np.repeat(deep[..., np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(read_source(colour, "x", bits=12).rgb[..., 2], DEEP)
    with pytest.raises(TensorError, match="colours of 16 bits: say how many bits"):
        read_source(colour, "x")


def test_eight_bits_travel_as_they_are_whatever_is_stated(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(DEEP).save(path)

    assert read_source(path, "x", bits=12).encoded == path.read_bytes()
    with pytest.raises(InputError, match="8 to 16"):
        read_sources([path], bits=20)


def test_a_dicom_file_is_converted_here(tmp_path):
    pytest.importorskip("pydicom", reason="DICOM needs the extra dicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 12, 20, 1
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = (DEEP.astype(np.uint16) << 4).tobytes()
    dataset.save_as(tmp_path / "scan.dcm", enforce_file_format=True)

    np.testing.assert_array_equal(read_source(tmp_path / "scan.dcm", "x").rgb[..., 0], 255 - DEEP)
