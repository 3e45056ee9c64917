"""The condition of a request as a person writes it: `probability < 0.8`, `margin < 0.2`, `class in cat, dog`."""

import csv
import re
from typing import Final

from keylock.errors import InputError
from keylock.v1 import explanation_pb2 as pb

__all__ = ["CONDITION_FORMS", "check_public", "parse_condition"]

CONDITION_FORMS: Final = "'probability < 0.8', 'margin < 0.2' or 'class in cat, dog'"
"""What a condition looks like, for messages and help."""

_BELOW: Final = re.compile(r"\s*(probability|margin)\s*<\s*(\S+)\s*", re.ASCII)
_CLASSES: Final = re.compile(r"\s*class\s+in\s+(.+)", re.ASCII | re.DOTALL)
_LONGEST: Final = 100_000


def parse_condition(text: str) -> pb.ExplainIf:
    """Reads a condition.

    Args:
        text: A probability or a margin as a number above 0 and at most 1, or names of classes with commas between them.
            A name with a comma in it stands in double quotes; what is quoted is a name, and a number without quotes is
            an index.

    Raises:
        InputError: If it is none of these, or the number is out of range.
    """
    shown = text if len(text) <= 80 else f"{text[:80]}..."
    wrong = f"{shown!r} is no condition for explain_if=: write {CONDITION_FORMS}"
    if len(text) > _LONGEST:
        raise InputError(wrong)
    below = _BELOW.fullmatch(text)
    if below is not None:
        return _number(below[1], below[2], wrong)
    named = _CLASSES.fullmatch(text)
    if named is None:
        raise InputError(wrong)
    try:
        [names] = csv.reader([named[1].strip()], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise InputError(f"{wrong}; a name with a comma or a quote in it stands in double quotes") from None
    chosen = pb.ClassSet()
    quoted = _quoted(named[1])
    for place, name in enumerate(names):
        plain = name.strip()
        if not plain:
            raise InputError(f"{shown!r} is no condition for explain_if=: a name of a class is empty")
        if place not in quoted and plain.isascii() and plain.isdigit() and len(plain) <= 9:
            chosen.indices.append(int(plain))
        else:
            chosen.labels.append(plain)
    return pb.ExplainIf(predicted=chosen)


def check_public(prediction: str) -> None:
    """Checks that the prediction that is asked for is the one at which conditions look.

    Args:
        prediction: `public` or `keyed`.

    Raises:
        InputError: If it is the keyed one.
    """
    if prediction == "keyed":
        raise InputError("explain_if= looks at the public prediction and gives it: leave prediction='keyed' out")


def _number(kind: str, text: str, wrong: str) -> pb.ExplainIf:
    try:
        number = float(text)
    except ValueError:
        raise InputError(wrong) from None
    if not 0 < number <= 1:
        raise InputError(f"explain_if= compares the {kind} with {text}: give a number above 0 and at most 1")
    return pb.ExplainIf(probability_below=number) if kind == "probability" else pb.ExplainIf(margin_below=number)


def _quoted(text: str) -> set[int]:
    """Returns the places of the names that stand in double quotes."""
    found, place, inside = set[int](), 0, False
    for character in text:
        if character == '"':
            inside = not inside
            found.add(place)
        elif character == "," and not inside:
            place += 1
    return found
