"""Downloads through torchvision, with every way they fail turned into one sentence."""

import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from keylock.errors import DataError

__all__ = ["download"]

_TIMEOUT_S = 30.0


def download(class_name: str, root: Path, *, wanted: str, allowed: bool) -> None:
    """Have torchvision download a data set.

    Args:
        class_name: Name of the class in `torchvision.datasets`.
        root: Folder to put it in.
        wanted: What is missing and where it belongs, for the error, for example `cifar-10-batches-py in data`.
        allowed: Whether to download at all.

    Raises:
        DataError: It is not allowed, torchvision is not installed, or the download failed.
    """
    by_hand = f"put {wanted} yourself, or give the data as an image folder or .npz file"
    if not allowed:
        raise DataError(f"{class_name} is not in {root}, and downloads are off: {by_hand}")
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as exc:  # A torchvision that does not fit its torch raises the latter.
        raise DataError(f"{class_name} is not in {root}, and downloading it needs torchvision: {by_hand}") from exc
    try:
        with _socket_timeout(_TIMEOUT_S):
            getattr(datasets, class_name)(str(root), train=True, download=True)
    except (OSError, RuntimeError, HTTPException, EOFError, tarfile.TarError) as exc:
        raise DataError(f"{class_name} is not in {root} and cannot be downloaded ({_why(exc)}): {by_hand}") from exc


def _why(error: Exception) -> str:
    """Return the last line of a download error: torchvision lists every mirror it tried, the reason comes last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip("<>") if lines else type(error).__name__


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on silent servers; torchvision itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
