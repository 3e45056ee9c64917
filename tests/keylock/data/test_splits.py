"""Names of splits, as people write them in folders and in files of arrays."""

import numpy as np
import pytest

from keylock.data import open_data
from keylock.data.splits import Role, SplitName, choose_test, looks_like_a_split, parse_split
from keylock.errors import DataError

from .conftest import pixels, write_images

CLASSES = ("glioma", "healthy")


def folder_of(root, *splits, classes=CLASSES, count=12):
    for place, split in enumerate(splits):
        for number, name in enumerate(classes):
            write_images(root / split / name, count, seed=10 * place + number)
    return root


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Training", Role.TRAIN),
        ("TRAIN", Role.TRAIN),
        ("training_set", Role.TRAIN),
        ("TrainingSet", Role.TRAIN),
        ("trainset", Role.TRAIN),
        ("train images", Role.TRAIN),
        ("seg_train", Role.TRAIN),
        ("trainval", Role.TRAIN),
        ("Testing", Role.TEST),
        ("Test_Set", Role.TEST),
        ("testdata", Role.TEST),
        ("holdout", Role.HOLDOUT),
        ("Hold-Out", Role.HOLDOUT),
        ("eval", Role.EVALUATION),
        ("Val", Role.VALIDATION),
        ("valid", Role.VALIDATION),
        ("VALIDATION", Role.VALIDATION),
        ("dev", Role.DEVELOPMENT),
        ("cat", None),
        ("trains", None),
        ("valley", None),
        ("images", None),
        ("2", None),
    ],
)
def test_a_name_has_a_role_in_any_spelling(name, role):
    assert parse_split(name) is role
    assert not looks_like_a_split(name)


@pytest.mark.parametrize("name", ["train2", "test1", "fold_3", "Fold1", "unlabeled", "seg_pred", "train-512", "split1"])
def test_a_name_may_look_like_a_split_that_is_not_known(name):
    assert parse_split(name) is None
    assert looks_like_a_split(name, wholly=True)


@pytest.mark.parametrize("name", ["test_tube", "train_station", "trainA"])
def test_a_name_with_other_words_looks_like_a_split_in_part(name):
    assert looks_like_a_split(name)
    assert not looks_like_a_split(name, wholly=True)


def test_the_test_set_is_what_comes_nearest_to_one():
    names = [SplitName(role.value, role) for role in Role]
    for role in (Role.TEST, Role.HOLDOUT, Role.EVALUATION, Role.VALIDATION, Role.DEVELOPMENT):
        assert choose_test(names).role is role
        names = [name for name in names if name.role is not role]
    assert choose_test(names) is None


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training_set", "test_set"),
        ("train", "eval"),
        ("seg_train", "seg_test"),
        ("train", "Hold-Out"),
        ("train", "dev"),
    ],
)
def test_folders_of_splits_are_no_classes(tmp_path, train, test):
    source = open_data(folder_of(tmp_path, train, test))

    assert source.classes == CLASSES
    assert np.bincount(source.train.labels).tolist() == np.bincount(source.test.labels).tolist() == [12, 12]
    assert {path.relative_to(tmp_path).parts[0] for path in source.train.images.paths} == {train}
    assert {path.relative_to(tmp_path).parts[0] for path in source.test.images.paths} == {test}


def test_what_is_not_used_is_said(tmp_path):
    folder_of(tmp_path / "mri", "train", "test", "val")
    write_images(tmp_path / "mri/figures", 3)
    write_images(tmp_path / "mri/train/loose", 1)
    (tmp_path / "mri/train/loose/000.png").rename(tmp_path / "mri/cover.png")
    (tmp_path / "mri/train/loose").rmdir()

    source = open_data(tmp_path / "mri")

    assert len(source.test) == 24
    assert source.notes == (
        "figures is not used (3 images)",
        "val is not used (24 images)",
        "not used, being in no class folder: 1 image file directly in mri",
    )


def test_what_serves_as_the_test_set_is_said(tmp_path):
    assert open_data(folder_of(tmp_path / "mri", "train", "val")).notes == (
        "mri has no test split: val is measured on",
    )


def test_a_split_inside_a_folder_of_its_own_name_is_found(tmp_path):
    folder_of(tmp_path / "training_set", "training_set")
    folder_of(tmp_path / "test_set", "test_set")
    (tmp_path / "training_set/.DS_Store").write_bytes(b"x")

    source = open_data(tmp_path)

    assert source.classes == CLASSES
    assert (len(source.train), len(source.test)) == (24, 24)


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        (("train", "train2"), "train2 looks like a split of a data set and the name is not known .for training train"),
        (("fold1", "fold2"), "fold1, fold2 look like splits"),
        (("train", "test", "unlabeled"), "unlabeled looks like a split"),
        (("train", "batch_b"), "batch_b looks like a split"),
        (("train", "Training"), "Training and train are both names for the train split"),
        (("train", "val", "valid"), "val and valid are both names for the validation split"),
        (("test", "val"), "has test and no train"),
    ],
)
def test_an_unclear_split_is_refused(tmp_path, splits, says):
    with pytest.raises(DataError, match=says):
        open_data(folder_of(tmp_path, *splits))


def test_splits_inside_classes_are_refused(tmp_path):
    folder_of(tmp_path, "bottle", "cable", classes=("train", "test"))

    with pytest.raises(DataError, match=r"bottle holds splits: expected train/CLASS"):
        open_data(tmp_path)


def test_splits_without_classes_are_refused(tmp_path):
    write_images(tmp_path / "train", 12)
    write_images(tmp_path / "test", 12)

    with pytest.raises(DataError, match=r"train holds images and no class folders: .* train/CLASS/\*\.png$"):
        open_data(tmp_path)


def test_a_test_set_without_classes_is_to_be_moved_away(tmp_path):
    folder_of(tmp_path, "train", "val")
    write_images(tmp_path / "Test_images", 12)

    with pytest.raises(DataError, match="or move Test_images away if nobody knows the classes"):
        open_data(tmp_path)


def test_a_folder_around_the_data_is_named(tmp_path):
    folder_of(tmp_path / "archive", "Training", "Testing")

    with pytest.raises(DataError, match=r"holds one folder only: give .*archive as the data"):
        open_data(tmp_path)


def test_an_unlabelled_folder_among_classes_is_refused(tmp_path):
    for name in (*CLASSES, "unlabeled"):
        write_images(tmp_path / name, 60)

    with pytest.raises(DataError, match="unlabeled looks like a split"):
        open_data(tmp_path)


def test_classes_with_words_of_splits_stay_classes(tmp_path):
    for name in ("bus", "test_tube", "train"):
        write_images(tmp_path / name, 40)

    assert open_data(tmp_path).classes == ("bus", "test_tube", "train")


def test_classes_that_hold_the_same_folders_are_noted(tmp_path):
    source = open_data(folder_of(tmp_path, "2023", "2024", count=60))

    assert source.classes == ("2023", "2024")
    assert source.notes == (
        "2023 and 2024 are taken for classes and hold folders of the same names (glioma, healthy): "
        "if they are splits, call them train and test",
    )


def test_what_systems_leave_behind_is_no_class(tmp_path):
    for name in CLASSES:
        write_images(tmp_path / name, 60)
        (tmp_path / name / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "__MACOSX/glioma").mkdir(parents=True)
    (tmp_path / "__MACOSX/glioma/._1.png").write_bytes(b"x")
    (tmp_path / ".ipynb_checkpoints").mkdir()

    source = open_data(tmp_path)

    assert source.classes == CLASSES
    assert source.notes == ()


def test_two_spellings_of_one_class_meet(tmp_path):
    write_images(tmp_path / "train/cafe\u0301", 12)
    write_images(tmp_path / "train/tea", 12)
    write_images(tmp_path / "test/caf\u00e9", 12)
    write_images(tmp_path / "test/tea", 12)

    source = open_data(tmp_path)

    assert source.classes == ("caf\u00e9", "tea")
    assert np.bincount(source.test.labels).tolist() == [12, 12]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("x_train", "y_train"), ("x_test", "y_test")),
        (("X_train", "Y_train"), ("X_val", "Y_val")),
        (("xtrain", "ytrain"), ("xdev", "ydev")),
        (("trainX", "trainY"), ("testX", "testY")),
        (("images_train", "labels_train"), ("images_eval", "labels_eval")),
        (("train_data", "train_targets"), ("test_data", "test_targets")),
        (("x", "y"), ("x_test", "y_test")),
        (("training_images", "training_labels"), ("validation_images", "validation_labels")),
    ],
)
def test_arrays_of_splits_are_known_by_their_names(tmp_path, train, test):
    images, labels = pixels(30, 12), np.arange(30) % 3
    arrays = dict(zip((*train, *test), (images, labels, images[:12], labels[:12, None]), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)

    source = open_data(tmp_path / "a.npz")

    assert np.array_equal(source.train.images, images)
    assert np.array_equal(source.test.labels, labels[:12])


def test_arrays_that_are_not_used_are_said(npz):
    validation = {"val_images": pixels(6, 12), "val_labels": np.arange(6) % 3, "ids": np.arange(30)}

    assert open_data(npz(**validation)).notes == (
        "arrays that are not used: ids",
        "val_images are not used (6 images)",
    )
    assert open_data(npz(test_labels=None), test_share=0.5).notes == (
        "there are no test images with labels: a share of train_images is measured on",
        "arrays that are not used: test_images",
    )
