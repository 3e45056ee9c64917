"""DICOM files as a viewer shows them; what pydicom computes is the second implementation of windows."""

import io

import numpy as np
import pytest

from keylock.errors import ImageError
from keylock.imaging.decoding import ImageLimits, decode, measure

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra dicom")

from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402 - after the check
from pydicom.pixels import apply_modality_lut, apply_windowing, convert_color_space  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid  # noqa: E402

RNG = np.random.default_rng(5)
VALUES = RNG.integers(0, 4096, (6, 9)).astype(np.uint16)
VALUES[0, :2] = (0, 4095)


def dataset_of(pixels=VALUES, *, stored=12, photometric="MONOCHROME2", signed=0, **further):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = stored, stored - 1, signed
    for name, value in further.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    return dataset


def bytes_of(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey(dataset, **options):
    decoded = decode(bytes_of(dataset), dicom=True, **options)
    assert (decoded == decoded[..., :1]).all()
    return decoded[..., 0]


def test_the_stored_bits_are_the_scale():
    np.testing.assert_array_equal(grey(dataset_of()), VALUES >> 4)
    assert measure(bytes_of(dataset_of()), dicom=True).stated_bits == 12


def test_low_values_without_a_statement_are_refused():
    with pytest.raises(ImageError, match="nearly black"):
        grey(dataset_of(stored=16))
    np.testing.assert_array_equal(grey(dataset_of(stored=16), bits=12), VALUES >> 4)


def test_monochrome1_is_inverted_exactly_once():
    expected = 255 - (VALUES >> 4)
    np.testing.assert_array_equal(grey(dataset_of(photometric="MONOCHROME1")), expected)
    inverse = dataset_of(photometric="MONOCHROME1", PresentationLUTShape="INVERSE")
    np.testing.assert_array_equal(grey(inverse), expected)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = grey(dataset_of(**window)).astype(int)
    np.testing.assert_array_equal(grey(dataset_of(photometric="MONOCHROME1", **window)), 255 - plain)


@pytest.mark.parametrize("kind", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (1000, 1500), (0, 2), (600, 1)])
def test_windows_are_those_of_pydicom(kind, centre, width):
    # pydicom's exponential overflows for narrow windows.
    width = max(width, 100) if kind == "SIGMOID" else max(width, 2) if kind == "LINEAR_EXACT" else width
    dataset = dataset_of(
        WindowCenter=centre, WindowWidth=width, VOILUTFunction=kind, RescaleSlope=1, RescaleIntercept=-1024
    )
    found = grey(dataset).astype(float)
    # pydicom scales to the range of the stored values after rescaling: -1024 to 3071.
    shown = apply_windowing(apply_modality_lut(VALUES, dataset), dataset)
    expected = (shown + 1024) / 4095 * 255
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 0.51


def test_the_first_of_several_windows_counts():
    several = dataset_of(WindowCenter=[100, 2000], WindowWidth=[200, 4000])
    np.testing.assert_array_equal(grey(several), grey(dataset_of(WindowCenter=100, WindowWidth=200)))


def test_signed_values_are_rescaled_and_windowed():
    signed = (VALUES.astype(np.int16) - 1024).astype(np.int16)
    dataset = dataset_of(signed, stored=16, signed=1, WindowCenter=0, WindowWidth=2000)
    expected = np.clip(((signed + 0.5) / 1999 + 0.5) * 255, 0, 255)
    assert np.abs(grey(dataset) - expected).max() <= 0.51
    assert measure(bytes_of(dataset), dicom=True) is None
    with pytest.raises(ImageError, match="a sign and no window"):
        grey(dataset_of(signed, stored=16, signed=1))


def test_colours_are_converted_once():
    rgb = RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)
    data = bytes_of(dataset_of(rgb, stored=8, photometric="RGB"))
    np.testing.assert_array_equal(decode(data, dicom=True), rgb)
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    decoded = decode(bytes_of(dataset_of(ybr, stored=8, photometric="YBR_FULL")), dicom=True)
    assert np.abs(decoded.astype(int) - rgb).max() <= 3


def test_eight_bits_stay_as_they_are():
    eight = (VALUES >> 4).astype(np.uint8)
    np.testing.assert_array_equal(grey(dataset_of(eight, stored=8)), eight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"NumberOfFrames": 3}, "has 3 frames"),
        ({"Rows": 60_000, "Columns": 60_000}, "60000 x 60000 pixels"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "a window of width 0"),
    ],
)
def test_what_is_no_single_image_is_refused(change, says):
    with pytest.raises(ImageError, match=says):
        decode(bytes_of(dataset_of(**change)), dicom=True, limits=ImageLimits())


def test_damaged_and_foreign_files_are_refused():
    data = bytes_of(dataset_of())
    with pytest.raises(ImageError, match="no pixels"):
        decode(bytes(128) + b"DICM" + bytes(100), dicom=True)
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode(data[:-20], dicom=True)
    with pytest.raises(ImageError, match="not read here"):
        decode(data)


def test_folders_of_dicom_files_are_data(tmp_path):
    from keylock.data import open_data

    for name in ("healthy", "ill"):
        (tmp_path / "mri" / name).mkdir(parents=True)
        for number in range(12):
            (tmp_path / "mri" / name / f"{number}.dcm").write_bytes(bytes_of(dataset_of()))

    source = open_data(tmp_path / "mri", test_share=0.5)

    assert source.preprocessing.bits == 12
    np.testing.assert_array_equal(source.train.images[0][..., 0], VALUES >> 4)
