"""License files: a signed text between two lines that say what it is, in the manner of PEM (RFC 7468).

    -----BEGIN KEYLOCK LICENSE-----
    eyJhbGciOiJFZDI1NTE5Iiwia2lkIjoi...
    -----END KEYLOCK LICENSE-----

The lines between hold the compact JWS itself, cut into 64 characters each; nothing else is in the file that a
signature would not cover.
"""

import re
from typing import Final

__all__ = ["MAX_FILE_BYTES", "armour", "unarmour"]

MAX_FILE_BYTES: Final = 16 * 1024
"""No license file is larger."""

_LABEL: Final = "KEYLOCK LICENSE"
_COLUMNS: Final = 64
_BLOCK: Final = re.compile(rf"\s*-----BEGIN {_LABEL}-----\s+([\w.\s-]*?)\s*-----END {_LABEL}-----\s*", re.ASCII)


def armour(token: str) -> str:
    """Returns the text of a license file.

    Args:
        token: A license token.
    """
    lines = (token[start : start + _COLUMNS] for start in range(0, len(token), _COLUMNS))
    return "\n".join((f"-----BEGIN {_LABEL}-----", *lines, f"-----END {_LABEL}-----", ""))


def unarmour(text: str) -> str:
    """Returns the token in the text of a license file; a text without the two lines is the token itself.

    Args:
        text: The file's text, or a token.
    """
    found = _BLOCK.fullmatch(text)
    return "".join(found[1].split()) if found else text.strip()
