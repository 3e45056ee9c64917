"""Keys and certificates of others: whatever the library and OpenSSL make of damaged ones is one kind of error."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["damage_is_a_value_error"]


@contextmanager
def damage_is_a_value_error() -> Iterator[None]:
    """Turn whatever is raised by reading a key or a certificate into a ValueError, without the text of OpenSSL.

    Damaged files raise ValueError, TypeError and UnsupportedAlgorithm, and now and then an InternalError with the queue
    of OpenSSL's errors. What a certificate holds is read as late as it is asked for, so that belongs inside too.

    Raises:
        ValueError: If the block raises anything.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"the file cannot be read ({type(error).__name__})") from None
