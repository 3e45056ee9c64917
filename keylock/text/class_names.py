"""Class names: brought into one spelling and checked, wherever they come from.

Data sets, bundles and the Python interface all take names through here, so that a name which a data set may have is
one which a bundle may carry, and the name that a caller types is the one that the bundle holds.
"""

import unicodedata
from collections.abc import Iterable
from typing import Final

from keylock.errors import DataError
from keylock.text.printable import FLAG_OF_A_PART

__all__ = ["MAX_CLASS_NAME", "normalise_class_name", "normalise_class_names"]

MAX_CLASS_NAME: Final = 200
"""Characters of a class name, at most."""

# Characters that show nothing, although Unicode counts them as letters, symbols or marks.
_BLANK: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
# Joiners belong to the spelling of Persian, Hindi and other languages, and to emoji of several parts.
_JOINERS: Final = frozenset("\u200c\u200d")
_VIRAMA: Final = 9
"""The combining class of the signs that take the vowel off a letter."""
_VARIATION_SELECTORS: Final = frozenset(chr(code) for code in range(0xFE00, 0xFE10))
_EXCERPT: Final = 40


def normalise_class_name(name: str) -> str:
    """Brings a class name into its one spelling, without checking it.

    Args:
        name: Any text.

    Returns:
        The name in Unicode form NFC, with plain spaces in place of other ones, and none at its ends.
    """
    plain = "".join(" " if unicodedata.category(char) == "Zs" else char for char in name)
    return unicodedata.normalize("NFC", plain).strip(" ")


def normalise_class_names(names: Iterable[str], *, source: str) -> tuple[str, ...]:
    """Brings class names into their one spelling, and checks that a bundle can carry them and a person tell them apart.

    Args:
        names: The names, in the order of the labels.
        source: Where they come from, which is how messages begin, for example the name of the data set.

    Returns:
        The names as `normalise_class_name` writes them.

    Raises:
        DataError: A name is empty, too long, no text or not in its one spelling a line of visible characters, or two
            names are the same or look the same.
    """
    normal = tuple(_checked(name, place=f"{source}: class {index}") for index, name in enumerate(names))
    seen: dict[str, int] = {}
    for index, name in enumerate(normal):
        # What cannot be seen tells no classes apart.
        visible = "".join(char for char in name if char not in _JOINERS | _VARIATION_SELECTORS)
        earlier = seen.setdefault(visible, index)
        if earlier != index:
            raise DataError(
                f"{source}: classes {earlier} and {index} have the same name {name!r} (accents that are written in "
                "two ways, spaces at the ends and invisible characters do not count): give every class a name of its "
                "own"
            )
    return normal


def _checked(name: object, *, place: str) -> str:
    if not isinstance(name, str):
        raise DataError(f"{place} is named by a {type(name).__name__}: give texts as class names")
    normal = normalise_class_name(name)
    if not normal:
        raise DataError(f"{place} has an empty name: give every class a name")
    if len(normal) > MAX_CLASS_NAME:
        raise DataError(
            f"{place} ({_excerpt(normal)}) has a name of {len(normal)} characters: shorten it to at most "
            f"{MAX_CLASS_NAME}"
        )
    in_flags = {place for flag in FLAG_OF_A_PART.finditer(normal) for place in range(*flag.span())}
    for position, char in enumerate(normal):
        if position not in in_flags and not _is_allowed(normal, position):
            raise DataError(
                f"{place} ({_excerpt(normal)}) has {_kind(char)} (U+{ord(char):04X}) in its name: remove it"
            )
    if all(unicodedata.category(char).startswith("M") for char in normal):
        raise DataError(f"{place} ({_excerpt(normal)}) has a name of accents alone: give it letters or digits")
    return normal


def _is_allowed(name: str, position: int) -> bool:
    """Returns whether a character of a name is visible, or changes how visible ones beside it are shown."""
    char = name[position]
    if char in _JOINERS:
        before, after = name[:position][-1:], name[position + 1 :][:1]
        # At the end they still shape the letter before them where it has lost its vowel (Unicode, section 12.1).
        last = not after and before and unicodedata.combining(before) == _VIRAMA
        return bool(before) and before not in _JOINERS and bool(last or (after and after not in _JOINERS))
    return char.isprintable() and char not in _BLANK


def _kind(char: str) -> str:
    """Says why a character is refused."""
    match unicodedata.category(char):
        case "Cc":
            return "a control character"
        case "Co":
            return "a character for private use"
        case "Cn":
            return f"a character that this Python, of Unicode {unicodedata.unidata_version}, does not know"
        case "Cs":
            return "half of a character"
        case _:
            return "an invisible character"


def _excerpt(name: str) -> str:
    return repr(name if len(name) <= _EXCERPT else name[:_EXCERPT] + "...")
