"""Image folders: both layouts, lazily decoded files, and folders that are not as they should be."""

import numpy as np
import pytest
from PIL import Image

from keylock.data import ImageFiles, open_data
from keylock.errors import DataError
from keylock.imaging.preprocessing import Preprocessing


def test_a_split_folder_has_its_pixels_and_labels(split_folder):
    source = open_data(split_folder)
    assert source.classes == ("cat", "dog")
    assert source.name == "pets"
    assert source.train.labels.tolist() == [0] * 8 + [1] * 8
    assert len(source.test) == 12
    expected = np.asarray(Image.open(split_folder / "val/dog/002.png"))
    assert np.array_equal(source.test.images[8], expected)


def test_a_plain_folder_is_split_by_the_share(plain_folder):
    source = open_data(plain_folder, test_share=0.25)
    assert np.bincount(source.test.labels).tolist() == [10, 10, 10]
    train, test = (set(images.images.paths) for images in (source.train, source.test))
    assert len(train | test) == 120
    assert not train & test


@pytest.mark.parametrize(("train", "test"), [("training", "test"), ("trainval", "valid"), ("train", "validation")])
def test_other_names_of_the_split_are_understood(split_folder, train, test):
    (split_folder / "train").rename(split_folder / train)
    (split_folder / "val").rename(split_folder / test)
    source = open_data(split_folder)
    assert (len(source.train), len(source.test)) == (16, 12)


def test_only_image_files_count(split_folder):
    (split_folder / "notes.csv").write_text("a")
    (split_folder / "masks").mkdir()
    (split_folder / "train/cat/notes.txt").write_text("a")
    (split_folder / "train/cat/.hidden.png").write_text("a")
    (split_folder / "train/.cache").mkdir()
    more = split_folder / "train/cat/more"
    more.mkdir()
    Image.new("L", (16, 16), 200).save(more / "grey.JPG", format="JPEG")
    source = open_data(split_folder)
    assert source.notes[1:] == ("left out of train, not being image files: 1 .txt file (cat/notes.txt)",)
    assert np.bincount(source.train.labels).tolist() == [9, 8]
    assert source.train.images[8].shape == (16, 16, 3)


def test_small_images_of_one_size_keep_it_and_others_become_224(split_folder):
    assert open_data(split_folder).preprocessing.size == (16, 16)
    Image.new("RGB", (40, 30)).save(split_folder / "train/cat/000.png")
    preprocessing = open_data(split_folder).preprocessing
    assert preprocessing.size == (224, 224)
    assert preprocessing.resize == "shorter_side_crop"


def test_decoded_files_are_kept(split_folder):
    source = open_data(split_folder)
    first = source.train.resized(source.preprocessing)
    (split_folder / "train/cat/000.png").unlink()
    assert source.train.resized(source.preprocessing) is first
    assert np.array_equal(source.train.resized(source.preprocessing, np.array([3, 0])), first[[3, 0]])


def test_damaged_files_are_counted_and_named_together(split_folder):
    whole = (split_folder / "train/cat/001.png").read_bytes()
    (split_folder / "train/cat/001.png").write_bytes(whole[: len(whole) // 2])
    (split_folder / "train/cat/000.png").write_bytes(b"")
    for i in range(4):
        (split_folder / f"train/dog/00{i}.png").write_text("not an image")
    source = open_data(split_folder)
    with pytest.raises(DataError, match=r"^6 of 16 image files cannot be read .*cat/000.png.*and 3 more; replace"):
        source.train.resized(source.preprocessing)
    with pytest.raises(DataError, match=r"^1 of 1 .*dog/002\.png"):
        source.train.images[10]


def test_a_file_that_vanished_is_named(tmp_path):
    files = ImageFiles([tmp_path / "gone.png"])
    preprocessing = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(DataError, match=r"No such file.*gone\.png"):
        files.resized(preprocessing)


def test_a_folder_of_damaged_files_opens_and_fails_when_read(split_folder):
    for path in split_folder.rglob("*.png"):
        path.write_bytes(b"x")
    source = open_data(split_folder)
    with pytest.raises(DataError, match="16 of 16"):
        source.train.resized(source.preprocessing)


def test_a_folder_without_classes_says_the_layout(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no class folders: expected train/CLASS/\*\.png and test/CLASS/\*\.png, or"):
        open_data(tmp_path)


def test_one_class_is_not_enough(split_folder):
    for split in ("train", "val"):
        for path in (split_folder / split / "dog").iterdir():
            path.unlink()
        (split_folder / split / "dog").rmdir()
    with pytest.raises(DataError, match=r"found 1 class \('cat'\), a classifier needs at least two"):
        open_data(split_folder)


def test_an_empty_class_is_named(split_folder):
    (split_folder / "train/emu").mkdir()
    with pytest.raises(DataError, match="train/emu holds no image files"):
        open_data(split_folder)


def test_a_test_class_nobody_trained_is_named(split_folder):
    (split_folder / "val/emu").mkdir()
    with pytest.raises(DataError, match="has a class 'emu' that"):
        open_data(split_folder)


def test_a_test_folder_without_a_train_folder_is_refused(split_folder):
    (split_folder / "train").rename(split_folder / "learn")
    with pytest.raises(DataError, match="has val and no train: expected"):
        open_data(split_folder)


def test_too_few_test_images_are_refused(split_folder):
    for path in (split_folder / "val/dog").iterdir():
        path.unlink()
    (split_folder / "val/dog").rmdir()
    with pytest.raises(DataError, match="6 test images are too few to measure anything; give at least 10"):
        open_data(split_folder)


def test_images_behind_links_count_once(tmp_path, split_folder):
    linked = tmp_path / "linked"
    for name in ("cat", "dog"):
        (linked / name).mkdir(parents=True)
        (linked / name / "first").symlink_to(split_folder / "train" / name)
        (linked / name / "again").symlink_to(split_folder / "train" / name)
        (linked / name / "more").symlink_to(split_folder / "val" / name)
    (linked / "cat" / "back").symlink_to(linked)

    source = open_data(linked, test_share=0.5)

    counts = np.bincount(source.train.labels) + np.bincount(source.test.labels)
    assert counts.tolist() == [14, 14]
    paths = [*source.train.images.paths, *source.test.images.paths]
    assert len({path.resolve() for path in paths}) == 28
    assert all(path.resolve().parent.name == path.relative_to(linked).parts[0] for path in paths)


def test_a_test_folder_that_is_the_training_folder_is_refused(split_folder):
    (split_folder / "test").symlink_to(split_folder / "train")
    with pytest.raises(DataError, match="train and test are one folder"):
        open_data(split_folder)


def test_what_is_left_out_is_counted_to_the_end(plain_folder):
    for name in ("a.heic", "b.heic", "a.avif", "a.jp2", "a.ppm", "a.pgm"):
        (plain_folder / "ant" / name).write_bytes(b"")

    [note] = open_data(plain_folder).notes

    assert "2 .heic, 1 .avif, 1 .jp2 and 2 other files (ant/a.avif, ant/a.heic, ant/a.jp2, ...)" in note
