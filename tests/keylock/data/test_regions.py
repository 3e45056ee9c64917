"""Masks and boxes beside an image folder: found, scaled as the images are, and refused where they do not fit."""

import csv

import numpy as np
import pytest
from PIL import Image

from keylock.data import open_data
from keylock.errors import DataError
from keylock.imaging.preprocessing import Preprocessing

SIZES = ((40, 30), (30, 40), (32, 32))


@pytest.fixture
def outlined(tmp_path):
    """train/ and test/ with two classes; the object of each image is its one bright rectangle."""
    folder = tmp_path / "pets"
    rng = np.random.default_rng(0)
    (folder / "masks").mkdir(parents=True)
    rows = [["file", "x0", "y0", "x1", "y1"]]
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(6):
                width, height = SIZES[index % 3]
                x0, y0 = rng.integers(8, 12, 2)
                x1, y1 = x0 + rng.integers(5, 9), y0 + rng.integers(5, 9)
                pixels = np.zeros((height, width), np.uint8)
                pixels[y0 : y1 + 1, x0 : x1 + 1] = 255
                file = f"{split}/{name}/{split}_{name}_{index}.png"
                Image.fromarray(pixels).save(folder / file)
                # Values of annotations: 1 inside, 2 at the border.
                Image.fromarray(
                    np.where(pixels, 1 + (index + np.indices(pixels.shape)[0]) % 2, 0).astype(np.uint8)
                ).save(folder / "masks" / f"{split}_{name}_{index}.png")
                rows.append([file, x0, y0, x1, y1])
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def masks_of_tests(folder):
    source = open_data(folder)
    return source.test.resized_masks(source.preprocessing)


def assert_masks_follow_images(images, preprocessing):
    bright = images.resized(preprocessing)[:, :, :, 0] >= 128
    masks = images.resized_masks(preprocessing)
    assert masks.shape == bright.shape
    assert masks.any(axis=(1, 2)).all()
    assert np.array_equal(masks, bright)


@pytest.mark.parametrize("kind", ["masks", "boxes", "masks as the images are", "masks of some, boxes of the others"])
def test_masks_and_boxes_are_scaled_as_the_images_are(kind, outlined):
    masks = outlined / "masks"
    if kind != "boxes" and "some" not in kind:
        (outlined / "boxes.csv").unlink()
    if kind == "boxes":
        for path in masks.iterdir():
            path.unlink()
        masks.rmdir()
    elif "as the images" in kind:
        for path in sorted(masks.iterdir()):
            split, name, _ = path.stem.split("_")
            (masks / split / name).mkdir(parents=True, exist_ok=True)
            path.rename(masks / split / name / path.name)
    elif "some" in kind:
        for path in sorted(masks.iterdir())[::2]:
            path.unlink()
    source = open_data(outlined)

    assert source.summary()["masks"]
    assert source.classes == ("cat", "dog")
    for images in (source.train, source.test, source.test.take(np.array([3, 0]))):
        assert_masks_follow_images(images, source.preprocessing)
    small = Preprocessing(size=(16, 16), resize="shorter_side_crop", mean=(0,) * 3, std=(1,) * 3)
    chosen = source.test.resized_masks(small, np.array([4]))
    assert np.array_equal(chosen[0], source.test.resized_masks(small)[4])


def test_several_boxes_are_one_region(outlined):
    for path in (outlined / "masks").iterdir():
        path.unlink()
    with (outlined / "boxes.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["test/cat/test_cat_2.png", 0, 0, 31, 3])
    source = open_data(outlined)
    exact = Preprocessing(size=(32, 32), mean=(0,) * 3, std=(1,) * 3)

    mask = source.test.resized_masks(exact)[2]
    assert mask[:4].all()
    assert mask[4:].any()


def test_a_plain_folder_does_not_take_its_masks_for_a_class(outlined):
    for name in ("cat", "dog"):
        (outlined / "test" / name).rename(outlined / name)
    for split in ("train", "test"):
        for path in sorted((outlined / split).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (outlined / split).rmdir()
    source = open_data(outlined, test_share=0.85)

    assert source.classes == ("cat", "dog")
    assert_masks_follow_images(source.test, source.preprocessing)


def test_a_class_may_be_called_masks(plain_folder):
    (plain_folder / "ant").rename(plain_folder / "masks")
    source = open_data(plain_folder)

    assert source.classes == ("bee", "cow", "masks")
    assert source.test.masks is None


def test_training_images_need_no_regions(outlined):
    (outlined / "boxes.csv").unlink()
    (outlined / "masks/train_cat_0.png").unlink()
    source = open_data(outlined)

    assert source.train.masks is None
    assert source.test.masks is not None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "masks/test_dog_1.png").unlink(), r"1 of 12 test images .* test/dog/test_dog_1\.png"),
        (lambda folder: (folder / "masks/test_dog_1.png").write_text("x"), r"1 of 12 image or mask files .*test_dog_1"),
        (
            lambda folder: Image.new("L", (8, 8), 1).save(folder / "masks/test_dog_1.png"),
            r"the mask test_dog_1\.png has another size than its image",
        ),
        (
            lambda folder: (folder / "test/cat/test_dog_1.png").write_bytes(
                (folder / "test/dog/test_dog_1.png").read_bytes()
            ),
            "would be the mask of several images: put masks into folders",
        ),
    ],
    ids=["missing", "damaged", "size", "shared"],
)
def test_masks_that_do_not_fit_are_named(spoil, message, outlined):
    (outlined / "boxes.csv").unlink()
    spoil(outlined)

    with pytest.raises(DataError, match=message):
        masks_of_tests(outlined)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,left\n", "must start with the line file,x0,y0,x1,y1"),
        ("file,x0,y0,x1,y1\na.png,1,2,3,\n", "line 2: x0, y0, x1 and y1 must be whole pixels"),
        ("file,x0,y0,x1,y1\na.png,1,2,3\n", "line 2: x0, y0, x1 and y1 must be whole pixels"),
        ("file,x0,y0,x1,y1\na.png,9,2,3,4\n", r"line 2: \(9, 2\) to \(3, 4\) is not a box: give left, top"),
        ("file,x0,y0,x1,y1\na.png,-1,2,3,4\n", "is not a box"),
        (
            "file,x0,y0,x1,y1\n"
            + "".join(f"test/{n}/test_{n}_{i}.png,90,90,99,99\n" for n in ("cat", "dog") for i in range(6)),
            r"12 of 12 .*its boxes in boxes\.csv lie outside",
        ),
    ],
    ids=["columns", "empty", "short", "crossed", "negative", "outside"],
)
def test_boxes_that_are_none_are_named(text, message, outlined):
    for path in (outlined / "masks").iterdir():
        path.unlink()
    (outlined / "boxes.csv").write_text(text)

    with pytest.raises(DataError, match=message):
        masks_of_tests(outlined)
