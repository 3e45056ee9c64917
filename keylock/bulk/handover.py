"""Secrets of variables for the workers of one machine: asked for over a socket that this user alone can open.

A secret in a variable is taken out of it before Ray starts, because everything that Ray starts would get it, and it is
neither written down nor sent through Ray. A worker asks for it, once, by a socket in a folder of this user alone.
"""

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from keylock.errors import UnsealError

__all__ = ["handed_over", "take_over"]

_PATIENCE_S: Final = 30.0
_LONGEST: Final = 2**20


@contextmanager
def handed_over(secrets: Mapping[str, str], folder: Path) -> Iterator[Path | None]:
    """Hands secrets to whoever asks while the block runs.

    Args:
        secrets: By the names of their variables; where there are none, nothing listens.
        folder: Of this user alone, with a short path: that of a socket has a hundred characters at most.

    Yields:
        The socket; None where there are no secrets.
    """
    if not secrets:
        yield None
        return
    place, content = folder / "secrets", json.dumps(dict(secrets)).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(place))
        place.chmod(0o600)
        listening.listen(64)
        threading.Thread(target=_answer, args=(listening, content), daemon=True).start()
        try:
            yield place
        finally:
            # Wakes the thread up, which closing alone does not.
            with closing(listening):
                listening.shutdown(socket.SHUT_RDWR)
            place.unlink(missing_ok=True)


def take_over(place: Path) -> dict[str, str]:
    """Asks for the secrets.

    Args:
        place: The socket.

    Returns:
        The secrets, by the names of their variables.

    Raises:
        UnsealError: If nobody answers.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(_PATIENCE_S)
            asking.connect(str(place))
            with asking.makefile("rb") as answer:
                found: dict[str, str] = json.loads(answer.read(_LONGEST))
    except (OSError, ValueError):
        raise UnsealError(
            "a worker was not given what opens the key: the process that started it does not answer any more"
        ) from None
    return found


def _answer(listening: socket.socket, content: bytes) -> None:
    while True:
        try:
            asking, _ = listening.accept()
        except OSError:
            return
        with asking:
            try:
                asking.settimeout(_PATIENCE_S)
                asking.sendall(content)
            except OSError:
                continue
