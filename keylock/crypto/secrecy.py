"""What everything that holds a secret has in common: it is not copied, its file is private, its text is short."""

import ctypes
import os
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from keylock.text.small_files import decode_text

__all__ = [
    "MAX_SECRET_FILE_BYTES",
    "NotSecretTextError",
    "Opaque",
    "read_secret_text",
    "take_variable",
    "variable_of",
    "wipe",
    "write_secret_file",
]

MAX_SECRET_FILE_BYTES: Final = 4096


class Opaque:
    """Refuses the ways in which Python copies an object behind its owner's back."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is secret and cannot be pickled or copied; pass the object itself")


class NotSecretTextError(ValueError):
    """A file holds no short text; the message says why, without the path and without the content."""


def wipe(buffer: bytearray) -> None:
    """Overwrites a secret with zeros. Copies that Python or a library made of it are out of reach: docs/keys.md."""
    buffer[:] = bytes(len(buffer))


def take_variable(environment: MutableMapping[str, str], name: str) -> str | None:
    """Takes a secret out of the variables of the process, so that no process it starts gets it.

    Where the system allows it, the secret is overwritten too in the memory that `/proc/PID/environ` shows. What cannot
    be taken back is what others have: the shell or the service that set the variable, and who looked before this.

    Args:
        environment: `os.environ`, or a dictionary.
        name: The variable.

    Returns:
        Its value; None where it is not set.
    """
    if environment is os.environ and name in environment:
        _overwrite(name)
        # What was overwritten is the C library's; Python's copy is as it was.
    return environment.pop(name, None)


def variable_of(provider: str) -> str | None:
    """Returns which variable a key provider reads its secret from; None where it reads none that was named."""
    kind, _, argument = provider.partition(":")
    return argument if kind == "environment" and argument else None


def _overwrite(name: str) -> None:
    """Overwrites the value of a variable in place, where the C library gives the place."""
    with suppress(OSError, AttributeError, TypeError):  # Windows has no library of all symbols.
        getenv = ctypes.CDLL(None).getenv
        getenv.argtypes, getenv.restype = [ctypes.c_char_p], ctypes.c_void_p
        place = getenv(os.fsencode(name))
        if place:
            ctypes.memset(place, 0, len(ctypes.string_at(place)))


def write_secret_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Creates a file of mode 0600 and writes a secret to it; an existing file is never touched.

    Raises:
        FileExistsError: If something is at the path already, a dangling link included.
        OSError: If the file cannot be created or written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_secret_text(path: str | os.PathLike[str], *, max_bytes: int = MAX_SECRET_FILE_BYTES) -> str:
    """Returns the text of a small file, without white space at its ends and without a byte order mark.

    Args:
        path: The file.
        max_bytes: How large it may be.

    Raises:
        OSError: If the file cannot be read.
        NotSecretTextError: If it is empty, too long, or neither UTF-8 nor, by its mark, UTF-16.
    """
    with Path(path).open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise NotSecretTextError(f"it has more than {max_bytes} bytes")
    try:
        text = decode_text(content).strip()
    except UnicodeDecodeError:
        raise NotSecretTextError("it is not text") from None
    if not text:
        raise NotSecretTextError("it is empty")
    return text
