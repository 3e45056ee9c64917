"""How an image folder is laid out: which of the folders in it are splits, which are classes, and what nobody uses."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from keylock.data.files import SUFFIXES
from keylock.data.regions import MASKS_FOLDER
from keylock.data.splits import KNOWN_SPLITS, Role, SplitName, choose_test, looks_like_a_split, parse_split
from keylock.errors import DataError
from keylock.text.class_names import normalise_class_name, normalise_class_names

__all__ = ["LAYOUT", "Layout", "Listing", "class_folders", "describe_files", "find_layout", "list_images"]

LAYOUT = "expected train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png"
# Left there by operating systems and programs, beside the names that begin with a dot.
_SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"})
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_NAMED_AT_MOST = 3


@dataclass(frozen=True)
class Layout:
    """Where the images of a folder are.

    Attributes:
        train: The folder that has a folder for each class.
        test: The same for test images, or None where there is no split.
        notes: What is not used of the folder, and what serves as the test set, in sentences.
    """

    train: Path
    test: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
        images: The image files, in an order that is the same on every machine.
        others: Other files that are not hidden.
    """

    images: tuple[Path, ...]
    others: tuple[Path, ...]


def find_layout(folder: Path) -> Layout:
    """Find out which folders are splits.

    Args:
        folder: What `--data` names.

    Returns:
        The layout; without a split, `train` is the folder itself.

    Raises:
        DataError: A folder looks like a split and is not known, two are the same split, or a split has no classes.
    """
    folders = [entry for entry in visible_folders(folder) if entry.name.lower() != MASKS_FOLDER]
    splits = [SplitName(entry.name, role) for entry in folders if (role := parse_split(entry.name))]
    if not splits or _is_a_class(folder, splits, folders):
        _refuse_unknown(folder, _unknown(folders, beside_splits=False))
        return Layout(folder, notes=_notes_on_classes(folder, folders))
    _refuse_unknown(folder, _unknown(folders, beside_splits=True))
    _refuse_same(folder, splits)
    test = choose_test(splits)
    train = next((split for split in splits if split.role is Role.TRAIN), None)
    if train is None:
        raise DataError(
            f"{folder} has {splits[0].name} and no train: {LAYOUT}; "
            f"if {splits[0].name} is a class, give it another name"
        )
    if test is not None and (folder / train.name).samefile(folder / test.name):
        raise DataError(f"{folder}: {train.name} and {test.name} are one folder: give test images of their own")
    _refuse_same_classes(folder, folder / train.name, folders)
    notes = list(_notes_on_splits(folder, folders, train, test))
    train_folder = _inner(folder / train.name, Role.TRAIN)
    return Layout(train_folder, None if test is None else _inner(folder / test.name, test.role), tuple(notes))


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, but hidden ones and those that systems leave behind."""
    found = (entry for entry in folder.iterdir() if entry.is_dir())
    return sorted(entry for entry in found if not _is_hidden(entry.name) and entry.name.lower() not in _SYSTEM_FOLDERS)


def class_folders(folder: Path) -> dict[str, Path]:
    """Return the class folders of a split by the names of their classes, sorted by these.

    Raises:
        DataError: There are none, or a name is unusable.
    """
    folders = sorted(visible_folders(folder), key=lambda entry: normalise_class_name(entry.name))
    if not folders:
        raise DataError(f"{folder} has no class folders: {LAYOUT}")
    names = normalise_class_names((entry.name for entry in folders), source=str(folder))
    return dict(zip(names, folders, strict=True))


def list_images(folder: Path) -> Listing:
    """List the files below a folder, at any depth and behind links; hidden ones are passed over."""
    images: list[Path] = []
    others: list[Path] = []
    for path in _files(folder):
        (images if path.suffix.lower() in SUFFIXES else others).append(path)
    return Listing(tuple(images), tuple(others))


def describe_files(paths: Sequence[Path], *, below: Path) -> str:
    """Return how many files of which kinds these are, with the first names: `3 .heic files (cat/1.heic, ...)`."""
    kinds = Counter(path.suffix.lower() or "(no suffix)" for path in paths)
    common = kinds.most_common(_NAMED_AT_MOST)
    counts = ", ".join(f"{count} {kind}" for kind, count in common)
    more = len(paths) - sum(count for _, count in common)
    names = ", ".join(path.relative_to(below).as_posix() for path in paths[:_NAMED_AT_MOST])
    dots = ", ..." if len(paths) > _NAMED_AT_MOST else ""
    others = f" and {more} other" if more else ""
    return f"{counts}{others} file{'s' if len(paths) > 1 else ''} ({names}{dots})"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that are not hidden, sorted by their paths; each folder counts once."""
    found = []
    start = folder.resolve()
    # A link to a folder around this one leads back here, and to other classes.
    seen = {start, *start.parents}
    for where, below, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(name for name in below if not _is_hidden(name) and name.lower() not in _SYSTEM_FOLDERS):
            target = Path(where, name).resolve()
            if target not in seen:
                seen.add(target)
                kept.append(name)
        below[:] = kept
        found += [Path(where, name) for name in names if not _is_hidden(name)]
    yield from sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _direct_images(folder: Path) -> list[Path]:
    """Return the image files that lie in a folder itself."""
    return [
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not _is_hidden(entry.name) and entry.is_file()
    ]


def _holds_classes(folder: Path) -> bool:
    return bool(visible_folders(folder)) and not _direct_images(folder)


def _is_a_class(folder: Path, splits: Sequence[SplitName], folders: Sequence[Path]) -> bool:
    """Return whether `train` is a class, as in a set of vehicles: it holds images itself, and others do beside it."""
    if len(splits) > 1 or splits[0].name.lower() not in ("train", "trains") or _holds_classes(folder / splits[0].name):
        return False
    return any(_direct_images(entry) for entry in folders if entry.name != splits[0].name)


def _unknown(folders: Sequence[Path], *, beside_splits: bool) -> list[Path]:
    """Return the folders that look like splits and are none that is known."""
    return [
        entry
        for entry in folders
        if looks_like_a_split(entry.name, wholly=not (beside_splits or _holds_classes(entry)))
    ]


def _refuse_unknown(folder: Path, unknown: Sequence[Path]) -> None:
    if unknown:
        names = ", ".join(entry.name for entry in unknown[:_NAMED_AT_MOST])
        raise DataError(
            f"{folder}: {names} {'look like splits' if len(unknown) > 1 else 'looks like a split'} of a data set and "
            f"the name is not known ({KNOWN_SPLITS}): rename or move the folder, or give it another name if it is a "
            "class"
        )


def _refuse_same(folder: Path, splits: Sequence[SplitName]) -> None:
    seen: dict[Role, str] = {}
    for split in splits:
        if split.role in seen:
            raise DataError(
                f"{folder}: {seen[split.role]} and {split.name} are both names for the {split.role} split: "
                "put their images into one of them, or move the other away"
            )
        seen[split.role] = split.name


def _refuse_same_classes(folder: Path, train: Path, folders: Sequence[Path]) -> None:
    """Refuse a folder beside the splits that has the classes of the training images, whatever its name."""
    classes = {normalise_class_name(entry.name) for entry in visible_folders(train)}
    others = [entry for entry in folders if parse_split(entry.name) is None and _holds_classes(entry)]
    alike = [entry for entry in others if classes & {normalise_class_name(e.name) for e in visible_folders(entry)}]
    _refuse_unknown(folder, [entry for entry in alike if list_images(entry).images])


def _inner(folder: Path, role: Role) -> Path:
    """Return the folder that has the classes: some archives hold `training_set/training_set/CLASS`.

    Raises:
        DataError: There are images and no class folders.
    """
    below = visible_folders(folder)
    if len(below) == 1 and parse_split(below[0].name) is role and not _direct_images(folder):
        return _inner(below[0], role)
    if not below and _direct_images(folder):
        away = "" if role is Role.TRAIN else f", or move {folder.name} away if nobody knows the classes"
        raise DataError(
            f"{folder} holds images and no class folders: put the images of every class into a folder of its own, "
            f"{folder.name}/CLASS/*.png{away}"
        )
    return folder


def _notes_on_splits(folder: Path, folders: Sequence[Path], train: SplitName, test: SplitName | None) -> Iterator[str]:
    """Yield what serves as the test set, and what is not used."""
    if test is None:
        yield f"{folder.resolve().name} has no test split: a share of {train.name} is measured on"
    elif test.role is not Role.TEST:
        yield f"{folder.resolve().name} has no test split: {test.name} is measured on"
    used = {train.name} | ({test.name} if test else set())
    for entry in folders:
        count = 0 if entry.name in used else len(list_images(entry).images)
        if count:
            yield f"{entry.name} is not used ({count} image{'s' if count > 1 else ''})"
    yield from _note_on_loose_images(folder)


def _notes_on_classes(folder: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    """Return what is doubtful about folders that are taken for classes.

    Raises:
        DataError: They are no classes: the only one holds the data set, or each holds splits.
    """
    if len(folders) == 1 and _holds_classes(folders[0]) and not _direct_images(folder):
        raise DataError(f"{folder} holds one folder only: give {folders[0]} as the data")
    notes = list(_note_on_loose_images(folder))
    inner = [frozenset(normalise_class_name(entry.name) for entry in visible_folders(below)) for below in folders]
    _refuse_splits_in_classes(folder, folders)
    if len(folders) > 1 and len(set(inner)) == 1 and len(inner[0]) > 1 and all(map(_holds_classes, folders)):
        names = " and ".join(entry.name for entry in folders[:2])
        notes.append(
            f"{names} are taken for classes and hold folders of the same names ({', '.join(sorted(inner[0])[:3])}): "
            "if they are splits, call them train and test"
        )
    return tuple(notes)


def _refuse_splits_in_classes(folder: Path, folders: Sequence[Path]) -> None:
    """Refuse `CLASS/train` with `CLASS/test`: the split would be lost, and test images trained on."""
    for entry in folders:
        roles = {parse_split(below.name) for below in visible_folders(entry)} - {None}
        if Role.TRAIN in roles and len(roles) > 1:
            raise DataError(
                f"{entry} holds splits: {LAYOUT}; where {entry.name} is the data set itself, give {entry} as the data"
            )


def _note_on_loose_images(folder: Path) -> Iterator[str]:
    loose = _direct_images(folder)
    if loose:
        files = f"{len(loose)} image file{'s' if len(loose) > 1 else ''}"
        yield f"not used, being in no class folder: {files} directly in {folder.resolve().name}"
