"""What was the fastest way to compute a graph on this machine, remembered in a file so that a start need not find out.

Nothing secret is in it: digests, names of ways, and a date. Whoever can change the file can make a server try another
way, no more: a way that is remembered is proved again before it serves.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from keylock.crypto.digests import digest_of
from keylock.files.atomic import PRIVATE, replacing, write_file
from keylock_server.inference.way import GraphFiles, Way

__all__ = ["Choices"]

_LOG: Final = logging.getLogger("keylock_server")
_FORMAT: Final = "keylock-ways/v1"
_MOST: Final = 500
_MOST_BYTES: Final = 1 << 20


class Choices:
    """Finds and keeps choices for one model on one machine."""

    def __init__(self, file: Path, about: Mapping[str, str]) -> None:
        """Takes what choices depend on.

        Args:
            file: Where they are kept. One that cannot be read or written is as if there were none.
            about: The model, the processor, versions and settings: with others than these nothing is remembered.
        """
        self._file, self._about = file, dict(about)

    def find(self, files: GraphFiles, ways: Sequence[Way], standard: Way) -> Way | None:
        """Returns which of the ways was chosen for a graph; None where that is not known."""
        entry = self._read().get(self._name(files, ways))
        if not isinstance(entry, dict):
            return None
        return next((way for way in (standard, *ways) if entry.get("way") == str(way)), None)

    def keep(self, files: GraphFiles, ways: Sequence[Way], chosen: Way) -> None:
        """Remembers a choice. Of several processes that do so at the same time, one may be forgotten."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entries = self._read()
        name = self._name(files, ways)
        entries.pop(name, None)
        entries[name] = {"graph": files.what, "way": str(chosen), "chosen": now}
        # What was chosen first goes first.
        entries = dict(list(entries.items())[-_MOST:])
        try:
            with replacing(self._file, mode=PRIVATE) as place:
                write_file(place, json.dumps({"format": _FORMAT, "ways": entries}, indent=1) + "\n", mode=PRIVATE)
        except OSError as error:
            _LOG.warning("what is fastest is not remembered in %s: %s", self._file, error.strerror)

    def _name(self, files: GraphFiles, ways: Sequence[Way]) -> str:
        of = {**self._about, "graph": files.what, "ways": [f"{way}: {way.path}" for way in ways]}
        return digest_of(json.dumps(of, sort_keys=True).encode())

    def _read(self) -> dict[str, object]:
        try:
            with self._file.open("rb") as file:
                document = json.loads(file.read(_MOST_BYTES))
        except (OSError, ValueError):
            return {}
        found = document.get("ways") if isinstance(document, dict) and document.get("format") == _FORMAT else None
        return found if isinstance(found, dict) else {}
