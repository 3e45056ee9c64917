"""Where commands write: checked before anything slow begins, so that no hour of work ends in a refusal."""

from pathlib import Path

from keylock.errors import BundleError, InputError, ResumeError

__all__ = ["check_bundle_place", "check_folder", "has_interrupted_run", "make_folder", "make_folder_above"]

_STATES = ("reference.part.safetensors", "lock.safetensors")
"""Files of a work folder in which a training keeps its state."""


def check_bundle_place(out: Path, work: Path, *, resume: bool, overwrite: bool) -> None:
    """Return when a run may write a bundle there. Nothing is made.

    Args:
        out: Where the bundle goes.
        work: The folder of intermediate results.
        resume: Whether to go on with an interrupted run.
        overwrite: Whether a bundle, or an interrupted run, that is there may be replaced.

    Raises:
        BundleError: The place is taken or cannot be written to, or an interrupted run is there that would be lost.
        InUseError: Another run works there.
        ResumeError: There is nothing to resume.
    """
    from keylock.bundle.write import check_name, check_place
    from keylock.files.atomic import require_writable
    from keylock.files.exclusive import require_free

    check_name(out)
    require_free(work)
    if not has_interrupted_run(work):
        if resume:
            raise ResumeError(f"there is no interrupted run in {work}: start without --resume")
    elif not resume and not overwrite and not out.exists():
        raise BundleError(f"an interrupted run is in {work}: go on with it by --resume, or start anew by --overwrite")
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists: choose another --out, or replace it with --overwrite")
    if work.exists() and not work.is_dir():
        raise BundleError(
            f"{work} is not a folder, and the run keeps its state there: remove it, or choose another --out"
        )
    try:
        for folder in (out.absolute().parent, work.absolute()):
            require_writable(folder)
    except OSError as error:
        raise BundleError(f"cannot make the folder {folder} or write to it: {error.strerror}") from None
    if out.absolute().parent.is_dir():
        check_place(out.absolute(), overwrite=overwrite)


def has_interrupted_run(work: Path) -> bool:
    """Tell whether a folder of intermediate results has what `--resume` goes on from."""
    return any((work / name).is_file() for name in _STATES)


def make_folder_above(out: Path) -> None:
    """Make the folder that a bundle goes to, where it is missing.

    Raises:
        BundleError: It cannot be made.
    """
    from keylock.files.atomic import make_folders

    try:
        make_folders(out.absolute().parent)
    except OSError as error:
        raise BundleError(f"cannot make the folder {out.parent}: {error.strerror}") from None


def check_folder(out: Path) -> None:
    """Return when a path can be that of a folder of `--out`: there is a folder, or nothing.

    Raises:
        InputError: Its name is that of a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder: give --out a folder, which is made where it is missing")


def make_folder(out: Path) -> None:
    """Make the folder of `--out`, and see that files can be written to it.

    Raises:
        InputError: It cannot be made or written to, or its name is that of a file.
    """
    from keylock.files.atomic import make_folders, require_writable

    check_folder(out)
    try:
        make_folders(out)
        require_writable(out)
    except OSError as error:
        raise InputError(f"cannot write to the folder {out}: {error.strerror}: choose another --out") from None
