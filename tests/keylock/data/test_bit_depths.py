"""Data sets of images with more than eight bits: one scale for all, recorded in the preprocessing."""

import numpy as np
import pytest
from PIL import Image

from keylock.data import check_images, open_data
from keylock.data.files import decode_file
from keylock.errors import DataError, InputError
from keylock.imaging.decoding import decode

from .conftest import pixels, write_images

GREY = pixels(24, 16)[..., 0]
GREY[:, 0, 0] = 255


def deep_folder(root, *, bits=12, suffix="png", dim=()):
    """Two classes of 24 grey images each; those whose places are in `dim` use a sixteenth of the range."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for place, image in enumerate(GREY):
            values = (image.astype(np.uint16) >> (4 if place in dim else 0)) << (bits - 8)
            Image.fromarray(values).save(root / name / f"{place:03d}.{suffix}")
    return root


def open_half(path, **options):
    return open_data(path, test_share=0.5, **options)


@pytest.mark.parametrize("suffix", ["png", "tif", "TIFF"])
def test_stated_bits_hold_for_every_image_and_are_recorded(tmp_path, suffix):
    source = open_half(deep_folder(tmp_path / "pets", suffix=suffix), bits=12)

    assert source.preprocessing.bits == 12
    assert source.summary()["bits"] == 12
    assert source.notes == ("48 images of pets have more than 8 bits and are scaled as values of 12 bits",)
    first = source.train.images.paths[0]
    expected = np.repeat(GREY[int(first.stem)][..., None], 3, axis=2)
    np.testing.assert_array_equal(source.train.images[0], expected)
    np.testing.assert_array_equal(source.train.resized(source.preprocessing)[0], expected)
    # What a server does with the file.
    np.testing.assert_array_equal(decode(first.read_bytes(), bits=source.preprocessing.bits), expected)


def test_low_values_without_a_statement_are_refused_when_the_data_is_opened(tmp_path):
    with pytest.raises(DataError, match=r"pets has images with values of 16 bits that reach 4,080 .* 12 would fit"):
        open_half(deep_folder(tmp_path / "pets"))


def test_dim_images_stay_dim_beside_bright_ones(tmp_path):
    source = open_half(deep_folder(tmp_path / "pets", bits=16, dim=(3,)))

    assert source.preprocessing.bits == 16
    assert source.train.images.bits == 16
    assert decode_file(tmp_path / "pets/cat/003.png", bits=16).max() == 15


def test_images_of_eight_bits_need_no_scale(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "pets" / name, 24)

    source = open_half(tmp_path / "pets", bits=12)

    assert source.preprocessing.bits is None
    assert source.notes == ()


def test_values_beyond_the_stated_bits_are_named_by_file(tmp_path):
    source = open_half(deep_folder(tmp_path / "pets"), bits=10)

    with pytest.raises(DataError, match=r"24 of 24 training images cannot be read \(the image has values up to"):
        check_images(source)


@pytest.mark.parametrize("bits", [4, 17, "12"])
def test_bits_out_of_range_are_refused(tmp_path, bits):
    with pytest.raises(InputError, match="8 to 16"):
        open_half(tmp_path, bits=bits)


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_arrays_of_16_bits_are_scaled(tmp_path, kind):
    np.savez(tmp_path / "a.npz", images=(GREY.astype(np.uint16) << 4).astype(kind), labels=np.arange(24) % 2)

    source = open_half(tmp_path / "a.npz", bits=12)

    assert source.preprocessing.bits == 12
    assert sorted(source.train.images.max(axis=(1, 2, 3))) == [255] * 12
    with pytest.raises(DataError, match="nearly black"):
        open_half(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz: the image has values up to 4,080, which 10 bits do not hold"):
        open_half(tmp_path / "a.npz", bits=10)


def test_both_splits_of_arrays_have_one_scale(tmp_path):
    bright, dim = GREY.astype(np.uint16) << 8, GREY.astype(np.uint16)
    labels = np.arange(24) % 2
    np.savez(tmp_path / "a.npz", x_train=bright, y_train=labels, x_test=dim, y_test=labels)

    source = open_data(tmp_path / "a.npz")

    np.testing.assert_array_equal(source.train.images[..., 0], GREY)
    assert source.test.images.max() == 0


def test_damaged_files_are_counted_by_split_before_a_training(split_folder):
    for name in ("train/cat/001.png", "train/dog/002.png", "val/dog/000.png"):
        (split_folder / name).write_bytes(b"x")

    with pytest.raises(DataError) as error:
        check_images(open_data(split_folder))

    assert "2 of 16 training images cannot be read" in error.value.message
    assert "1 of 12 test images cannot be read" in error.value.message
    assert "val/dog/000.png" in error.value.message


def test_other_files_are_counted_by_their_kinds(split_folder):
    for name in ("train/cat/a.heic", "train/dog/b.HEIC", "train/dog/c.jp2", "val/dog/d"):
        (split_folder / name).write_bytes(b"x")

    assert open_data(split_folder).notes[1:] == (
        "left out of train, not being image files: 2 .heic, 1 .jp2 files (cat/a.heic, dog/b.HEIC, dog/c.jp2)",
        "left out of val, not being image files: 1 (no suffix) file (dog/d)",
    )
