"""Engines that TensorRT built, kept in a private folder so that a server does not build them at every start.

ONNX Runtime tells engines apart by the structure of their graphs, not by their weights, and would take that of another
model. Here each has a folder of its own, named by a digest of everything that it depends on. Folders appear whole:
several processes may start at the same time.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from keylock.errors import ServiceError
from keylock.files.atomic import PRIVATE, make_folders

__all__ = ["Engines"]

T = TypeVar("T")

_LOG: Final = logging.getLogger("keylock_server")
_KEPT: Final = 16
_TIMINGS: Final = "timings"
_TIMING_FILES: Final = "*.timing"


class Engines:
    """A folder of engines. Nothing is put there that holds a secret; whoever uses it sees to that."""

    def __init__(self, folder: Path, *, kept: int = _KEPT) -> None:
        """Takes the folder, and makes it where it is missing.

        Args:
            folder: Whoever can write there decides what is computed, so it must be reached by its owner alone.
            kept: How many engines are kept; those that were not used for longest go.

        Raises:
            ServiceError: If others can reach it.
            OSError: If it cannot be made.
        """
        self._folder, self._kept = folder, kept
        make_folders(folder, mode=PRIVATE)
        (folder / _TIMINGS).mkdir(mode=0o700, exist_ok=True)
        if os.name == "posix":
            status = folder.stat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise ServiceError(
                    f"{folder} keeps engines, which are run as they are, and others than the owner of this process can "
                    "reach it: make it private (chmod 700), or name another folder as engine_cache"
                )

    def use(self, parts: Iterable[bytes], make: Callable[[Path], T]) -> T:
        """Returns what is made with the engine that is kept, or with a new one, which then is kept.

        Args:
            parts: Everything that the engine depends on.
            make: Takes a folder, uses the engine in it, or builds one and writes it there.
        """
        place = self._folder / _digest(parts)
        if place.is_dir():
            try:
                made = make(place)
            except Exception as error:  # What comes out of an engine that does not fit is anything.
                _LOG.warning("the engine in %s is of no use any more (%s) and built again", place, type(error).__name__)
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.touch()
                return made
        with tempfile.TemporaryDirectory(prefix=".", dir=self._folder, ignore_cleanup_errors=True) as unfinished:
            made = self._build(Path(unfinished), make, place)
        self._tidy()
        return made

    def _build(self, unfinished: Path, make: Callable[[Path], T], place: Path) -> T:
        built = unfinished / "engine"
        built.mkdir(mode=0o700)
        for file in (self._folder / _TIMINGS).glob(_TIMING_FILES):
            shutil.copy(file, built)
        made = make(built)
        try:
            # What was timed for one graph is of use for the next one that is like it.
            for file in built.glob(_TIMING_FILES):
                file.replace(self._folder / _TIMINGS / file.name)
            if any(built.iterdir()):
                built.rename(place)
        except OSError as error:
            # Another process was quicker, or the disk is full: the engine is loaded, and next time is another time.
            _LOG.info("the engine is not kept: %s", error.strerror)
        return made

    def _tidy(self) -> None:
        places = [place for place in self._folder.iterdir() if place.name[0] != "." and place.name != _TIMINGS]
        for place in sorted(places, key=_last_used, reverse=True)[self._kept :]:
            shutil.rmtree(place, ignore_errors=True)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _last_used(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except OSError:  # Another process has tidied it away.
        return 0.0
