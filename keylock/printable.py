"""Texts that others wrote, as they can be shown: no character of them does anything to a terminal or a page."""

__all__ = ["printable"]

# Joiners belong to the spelling of Persian and Indic words, and to emoji.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    r"""Return a text with control characters written out, such as `\x1b` for an escape and `\n` for a line break.

    Characters that change the direction of writing or that cannot be seen are written out as well, because they let
    a text look like another one. What is printable stays as it is, in any script.

    Args:
        text: Of a server, a file or anybody else.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _JOINERS else _written_out(one) for one in text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
