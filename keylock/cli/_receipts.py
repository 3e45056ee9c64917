"""What `keylock receipt` and `keylock audit-log` share: whom to trust, and reading receipts and notes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keylock.cli._home import own_issuers, read_issuers
from keylock.errors import InputError, SignatureError

if TYPE_CHECKING:
    from keylock.signing import VerifyingKey

__all__ = ["find_trust", "read_small_text"]

_MAX_BYTES: Final = 4 * 1024 * 1024


def find_trust(issuer: list[Path] | None, home: Path) -> "Callable[[VerifyingKey], bool]":
    """Returns a test for trusted issuers: those of `--issuer`, or those of the vendor's directory.

    Raises:
        SignatureError: If there is neither, or a key cannot be read.
    """
    from keylock.licensing.receipts import trusts_any

    keys = read_issuers(issuer) or own_issuers(home)
    if not keys:
        raise SignatureError("say whom you trust: give --issuer with the vendor's public key")
    return trusts_any(keys)


def read_small_text(path: Path, what: str) -> str:
    """Returns the text of a file from anybody.

    Raises:
        InputError: If it cannot be read, is too long or no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) <= _MAX_BYTES:
            return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        pass
    raise InputError(f"{path} is no {what}: it is too long, or no text")
