"""Names of the arrays in an `.npz` file: which split each belongs to, and whether it has images, labels or masks.

`train_images` with `train_labels`, `x_train` with `y_train` (Keras), `X_test`, `val_images` (MedMNIST), `images` with
`labels`: every name is a word for what it has and, maybe, one for the split.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from keylock.data.splits import KNOWN_SPLITS, Role, SplitName, choose_test, looks_like_a_split, parse_split, words_of
from keylock.errors import DataError

__all__ = ["EXPECTED", "ArrayNames", "Split", "find_arrays"]

Kind = Literal["images", "labels", "masks"]

EXPECTED: Final = (
    "expected train_images, train_labels, test_images and test_labels, or images and labels; optionally class_names"
)
_KINDS: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(("images", "image", "imgs", "img", "data", "inputs", "pixels", "x"), "images"),
    **dict.fromkeys(("labels", "label", "targets", "target", "y"), "labels"),
    **dict.fromkeys(("masks", "mask"), "masks"),
}
_CLASS_NAMES: Final = ("class_names", "classnames", "classes", "label_names", "labelnames", "target_names")

Split = Mapping[Kind, str]
"""The name of the array for each kind; images and labels are there."""


@dataclass(frozen=True)
class ArrayNames:
    """Which arrays of a file are used.

    Attributes:
        train: The arrays of the training set.
        test: Those of the test set, or None where there are none.
        class_names: The array of class names, where there is one.
        unused: Splits that are not used, by the name of their array of images.
        notes: What is not used, and what serves as the test set, in sentences.
    """

    train: Split
    test: Split | None
    class_names: str | None
    unused: Mapping[str, Split]
    notes: tuple[str, ...]

    @property
    def used(self) -> frozenset[str]:
        """The names of all arrays that are read."""
        splits = (self.train, self.test or {})
        return frozenset(name for split in splits for name in split.values()) | ({self.class_names or ""} - {""})


def find_arrays(names: Iterable[str], *, place: str) -> ArrayNames:
    """Find out what the arrays of a file are.

    Args:
        names: Their names.
        place: The file, for messages.

    Returns:
        Which arrays are used.

    Raises:
        DataError: Images or labels are missing, two arrays are the same, or one looks like a split that is not known.
    """
    names = sorted(names)
    splits: dict[Role | None, dict[Kind, str]] = {}
    unused = []
    class_names = [name for name in names if name.lower() in _CLASS_NAMES]
    for name in names:
        if name in class_names:
            continue
        kind, rest = _kind_of(name)
        role = parse_split(rest) if rest else None
        if rest and role is None:
            if kind is not None and looks_like_a_split(rest):
                raise DataError(
                    f"{place}: {name} looks like an array of a split that is not known ({KNOWN_SPLITS}): rename it, or "
                    "save the file without it"
                )
            unused.append(name)
        elif kind is None:
            unused.append(name)
        else:
            _add(splits.setdefault(role, {}), kind, name, place)
    complete = {role: split for role, split in splits.items() if {"images", "labels"} <= split.keys()}
    unused += [name for role, split in splits.items() if role not in complete for name in split.values()]
    if len(class_names) > 1:
        raise DataError(f"{place} has {' and '.join(class_names)}: save one array of class names")
    return _chosen(complete, class_names, unused, place=place, names=names)


def _chosen(
    complete: dict[Role | None, dict[Kind, str]],
    class_names: list[str],
    unused: list[str],
    *,
    place: str,
    names: list[str],
) -> ArrayNames:
    """Choose the training and the test set."""
    if None in complete and Role.TRAIN in complete:
        plain, train = complete[None]["images"], complete[Role.TRAIN]["images"]
        raise DataError(f"{place} has {plain} and {train}: save one of them as the training images")
    role = Role.TRAIN if Role.TRAIN in complete else None
    if role not in complete:
        raise DataError(f"{place} holds {', '.join(names) or 'no arrays'}: {EXPECTED}")
    others = {found.value: found for found in complete if found is not None and found is not Role.TRAIN}
    test = choose_test(SplitName(name, found) for name, found in others.items())
    notes = []
    if test is not None and test.role is not Role.TEST:
        notes.append(f"there are no test images: {complete[test.role]['images']} are measured on")
    if test is None and role is Role.TRAIN:
        notes.append(f"there are no test images with labels: a share of {complete[role]['images']} is measured on")
    if unused:
        notes.append(f"arrays that are not used: {', '.join(sorted(unused))}")
    rest = [found for found in others.values() if test is None or found is not test.role]
    return ArrayNames(
        train=complete[role],
        test=None if test is None else complete[test.role],
        class_names=class_names[0] if class_names else None,
        unused={complete[found]["images"]: complete[found] for found in rest},
        notes=tuple(notes),
    )


def _add(split: dict[Kind, str], kind: Kind, name: str, place: str) -> None:
    if kind in split:
        raise DataError(f"{place} has {split[kind]} and {name}, which mean the same: save one of them")
    split[kind] = name


def _kind_of(name: str) -> tuple[Kind | None, str]:
    """Return what an array has, and the words of its name that say something else."""
    # Keras and many notebooks write xtrain and trainx in one word.
    apart = re.sub(r"^(x|y)(train|test|val|valid|dev)$|^(train|test|val|valid|dev)(x|y)$", r"\1\3_\2\4", name.lower())
    words = words_of(name) if apart == name.lower() else words_of(apart)
    kinds = [_KINDS[word] for word in words if word in _KINDS]
    rest = "_".join(word for word in words if word not in _KINDS)
    # In `image_labels` the last word counts.
    return (kinds[-1] if kinds else None), rest
