"""License files: a signed text between two lines that say what it is, in the manner of PEM (RFC 7468).

    -----BEGIN KEYLOCK LICENSE-----
    eyJhbGciOiJFZDI1NTE5Iiwia2lkIjoi...
    -----END KEYLOCK LICENSE-----

The lines between hold the compact JWS itself, cut into 64 characters each; nothing else is in the file that a
signature would not cover. Files come by mail and over Windows, so they are read from any text that has one license in
it.
"""

import re
from typing import Final

from keylock.errors import LicenseError, LicenseReason
from keylock.text.small_files import ChangedTextError, decode_text, find_blocks, plain_text

__all__ = ["MAX_FILE_BYTES", "armour", "is_token", "read_token", "unarmour"]

MAX_FILE_BYTES: Final = 128 * 1024
"""Larger files are not searched for a license; one has at most a tenth of this, and mails have text around it."""

_LABEL: Final = "KEYLOCK LICENSE"
_COLUMNS: Final = 64
_TOKEN: Final = re.compile(r"ey[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
# An Ed25519 signature has 64 bytes, 86 characters: what tells a token from other words with two dots.
_TOKEN_IN_TEXT: Final = re.compile(r"(?<![\w.-])ey[\w-]+\.[\w-]+\.[\w-]{86}(?![\w-]|\.[\w-])", re.ASCII)


def armour(token: str) -> str:
    """Returns the text of a license file.

    Args:
        token: A license token.
    """
    lines = (token[start : start + _COLUMNS] for start in range(0, len(token), _COLUMNS))
    return "\n".join((f"-----BEGIN {_LABEL}-----", *lines, f"-----END {_LABEL}-----", ""))


def is_token(text: str) -> bool:
    """Returns whether a text has the form of a license token, a compact JWS."""
    return bool(_TOKEN.fullmatch(text))


def unarmour(text: str) -> str:
    """Returns the token in a text: a license file, a mail with one in it, or the token itself.

    Args:
        text: Any text.

    Returns:
        The token; where there is none, the text without white space at its ends.

    Raises:
        LicenseError: There are several licenses, or one that was cut off or changed.
    """
    try:
        found = find_blocks(text, _LABEL)
    except ChangedTextError as error:
        raise _malformed(f"the license cannot be read, {error}: ask the vendor for the file again") from None
    if not found:
        plain = plain_text(text)
        joined = re.sub(r"[\s>]+", "", plain)
        found = [joined] if is_token(joined) else list(dict.fromkeys(_TOKEN_IN_TEXT.findall(plain)))
    if len(found) > 1:
        raise _malformed(f"there are {len(found)} licenses in one text: give the one that you want to use")
    return found[0] if found else text.strip().strip("\ufeff")


def read_token(data: bytes, *, name: str) -> str:
    """Returns the token in the content of a license file.

    Args:
        data: Of the file, at most one byte more than `MAX_FILE_BYTES` of it.
        name: What to call the file in messages.

    Raises:
        LicenseError: There is no license in it, or not a single whole one.
    """
    if len(data) > MAX_FILE_BYTES:
        raise _malformed(f"{name} is larger than any license file: ask the vendor for the file again")
    try:
        text = decode_text(data)
    except UnicodeDecodeError:
        # The text around a license may be in any encoding; the license itself is ASCII in nearly all of them.
        text = data.decode("latin-1")
    try:
        token = unarmour(text)
    except LicenseError as error:
        raise _malformed(f"{name}: {error.message}") from None
    if not is_token(token):
        raise _malformed(f"{name} holds no license token: ask the vendor for the file again")
    return token


def _malformed(message: str) -> LicenseError:
    return LicenseError(LicenseReason.MALFORMED, message)
