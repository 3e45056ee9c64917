"""Texts that others wrote, as they can be shown: no character of them does anything to a terminal or a page."""

import re
from typing import Final

__all__ = ["FLAG_OF_A_PART", "printable"]

FLAG_OF_A_PART: Final = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f")
"""The flag of a part of a country, as Scotland: a black one, and the letters of its code as tags that nobody sees.

References:
    Unicode Technical Standard 51, section 2.6 and annex C.
"""

# Joiners belong to the spelling of Persian and Indic words, and to emoji.
_JOINERS: Final = "\u200c\u200d"
_PARTS: Final = re.compile(f"({FLAG_OF_A_PART.pattern})")


def printable(text: str) -> str:
    r"""Return a text with control characters written out, such as `\x1b` for an escape and `\n` for a line break.

    Characters that change the direction of writing or that cannot be seen are written out as well, because they let
    a text look like another one. What is printable stays as it is, in any script.

    Args:
        text: Of a server, a file or anybody else.
    """
    if text.isprintable():
        return text
    parts = _PARTS.split(text)
    return "".join(part if index % 2 else _all_printable(part) for index, part in enumerate(parts))


def _all_printable(text: str) -> str:
    return "".join(one if one.isprintable() or one in _JOINERS else _written_out(one) for one in text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
