"""Small text files as they arrive: decoded, whatever program saved them, and freed from what a mail program added.

Windows writes UTF-16 and byte order marks; mail programs quote with `>`, wrap lines, encode as quoted-printable or HTML
and turn hyphens into dashes. What is undone here is what can be undone without guessing.
"""

import codecs
import html
import quopri
import re
import textwrap
from typing import Final

__all__ = ["ChangedTextError", "decode_text", "find_blocks", "plain_text", "repair_pem"]

# The marks of UTF-32 begin with those of UTF-16 and come first.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_ENDS: Final = re.compile("\r\n?|[\u0085\u2028\u2029]")
# Some programs put the initials of who is quoted before the mark.
_QUOTE: Final = re.compile(r"^(?:[ \t]*[A-Za-z]{0,4}[>|])+[ \t]?", re.MULTILINE)
# OpenPGP puts "- " before lines of a signed mail that begin with a hyphen (RFC 9580, section 7.2).
_ESCAPED_DASH: Final = re.compile("^- (?=-)", re.MULTILINE)
_ENCODED: Final = re.compile(r"=\n|=[0-9A-Fa-f]{2}")
# A tag with two hyphens in a row is none: it began with a stray `<` and would reach over a whole block.
_TAG: Final = re.compile(r"</?[A-Za-z][A-Za-z0-9:]{0,9}(?:\s(?:[^<>-]|-(?!-))*)?/?>|<![^<>]*>")
_WRITTEN_LINE_END: Final = re.compile(r"\\[rn]")
# Hyphens of other kinds stand for one hyphen each; of the longer dashes nobody can say how many they were.
_HYPHENS: Final = dict.fromkeys(map(ord, "\u2010\u2011\u2212\ufe63\uff0d"), "-")
_INVISIBLE: Final = dict.fromkeys(
    [*map(ord, "\u00ad\u061c\u2060\ufeff"), *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)
_LONG_DASH: Final = re.compile("[\u2012-\u2015]")
_DASHES: Final = "(?<![-\u2012-\u2015])[-\u2012-\u2015]+"


class ChangedTextError(ValueError):
    """A text was changed in a way that cannot be undone; the message says how, without the text."""


def decode_text(data: bytes) -> str:
    """Decodes a text that is UTF-8, says by a byte order mark what it is, or is plainly ASCII in UTF-16.

    Args:
        data: The content of a file.

    Returns:
        The text without the mark.

    Raises:
        UnicodeDecodeError: It is no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if data and len(data) % 2 == 0 and not any(data[start::2]) and all(data[1 - start :: 2]):
            return data.decode(encoding)
    return data.decode("utf-8")


def plain_text(text: str) -> str:
    """Returns a text without what mail programs, web pages and settings files write in place of characters.

    Args:
        text: For example a mail, quoted or not, in quoted-printable or in HTML.

    Returns:
        The text with plain line ends and hyphens, without quotation marks at the beginnings of lines, tags and
        invisible characters. It is for finding a license or a key in it, not for reading.
    """
    plain = _plain_characters(text)
    if _ENCODED.search(plain):
        plain = _plain_characters(quopri.decodestring(plain.encode("utf-8")).decode("utf-8", "replace"))
    plain = _plain_characters(html.unescape(_TAG.sub("\n", plain)))
    return _ESCAPED_DASH.sub("", _QUOTE.sub("", _WRITTEN_LINE_END.sub("\n", plain)))


def find_blocks(text: str, label: str) -> list[str]:
    """Finds what stands between lines like `-----BEGIN LABEL-----` and `-----END LABEL-----` in any text.

    Args:
        text: For example a mail that has the block in it, quoted or not.
        label: The words of the two lines.

    Returns:
        The content of each block without white space, without repeats, in the order of the text.

    Raises:
        ChangedTextError: A block has no beginning or no end, or has characters in it that a program put in place of
            others.
    """
    plain = plain_text(text)
    words = r"\s*".join(map(re.escape, label.split()))
    begin, end = (re.compile(rf"{_DASHES} {{0,4}}{edge}\s*{words} {{0,4}}{_DASHES}") for edge in ("BEGIN", "END"))
    found: dict[str, None] = {}
    for start in begin.finditer(plain):
        stop = end.search(plain, start.end())
        following = begin.search(plain, start.end())
        if stop is None or (following is not None and following.start() < stop.start()):
            raise ChangedTextError("it is cut off: its last line is missing")
        content = re.sub(r"[\s>|]+", "", plain[start.end() : stop.start()])
        if _LONG_DASH.search(content):
            raise ChangedTextError("a mail program turned hyphens in it into dashes")
        found[content] = None
    if not found and end.search(plain):
        raise ChangedTextError("it is cut off: its first line is missing")
    return list(found)


def repair_pem(text: str, label: str) -> str:
    """Returns the one PEM block of a label in any text, written as it should be.

    Args:
        text: For example a mail that has the block in it, quoted or not.
        label: For example `PUBLIC KEY`.

    Returns:
        The block alone; the text as it is where there is none.

    Raises:
        ChangedTextError: There are several, or one that was cut off or changed.
    """
    found = list(dict.fromkeys(block.rstrip("=") for block in find_blocks(text, label)))
    if len(found) > 1:
        raise ChangedTextError(f"there are {len(found)} of them in one text")
    if not found:
        return text
    # What decodes quoted-printable takes the padding for the end of a line.
    content = found[0] + "=" * (-len(found[0]) % 4)
    return "\n".join([f"-----BEGIN {label}-----", *textwrap.wrap(content, 64), f"-----END {label}-----", ""])


def _plain_characters(text: str) -> str:
    return _LINE_ENDS.sub("\n", text).translate(_HYPHENS | _INVISIBLE).replace("\u00a0", " ")
