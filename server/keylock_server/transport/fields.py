"""Which field of a request is at fault."""

from collections.abc import Iterator
from contextlib import contextmanager

from keylock.errors import InputError

__all__ = ["at_field"]


@contextmanager
def at_field(field: str) -> Iterator[None]:
    """Lets an input error raised inside know which field of the request is at fault.

    Args:
        field: The field, for example `images[2]`; an error that knows its field already keeps it.
    """
    try:
        yield
    except InputError as error:
        if error.field is None:
            error.field = field
        raise
