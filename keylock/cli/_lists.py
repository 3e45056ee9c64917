"""Lists with commas, as options take them, in one piece or in several."""

from collections.abc import Iterable

__all__ = ["split_list"]


def split_list(given: Iterable[str] | None) -> tuple[str, ...]:
    """Return the parts of lists with commas, one after the other, without spaces around them and without empty ones.

    Args:
        given: A list for each time that the option was given; None where it was not.
    """
    return tuple(part.strip() for text in given or () for part in text.split(",") if part.strip())
