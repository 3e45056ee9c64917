"""Commands that ask about several images: what was reached is shown, whatever ends them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from keylock.cli._console import StoppedError, note
from keylock.errors import KeylockError

__all__ = ["raise_first", "what_was_reached"]


@contextmanager
def what_was_reached(
    images: Sequence[str], answers: Mapping[int, object], failures: list[KeylockError], done: str
) -> Iterator[list[StoppedError]]:
    """Go on after the block where it is broken off and some images have an answer, which may have been charged.

    Args:
        images: All of them.
        answers: Those that have an answer.
        failures: Gets what broke the block off.
        done: What was done with an image, for example `explained`.

    Yields:
        Where Ctrl-C breaks the block off, what says so.

    Raises:
        KeylockError: There are no answers.
        KeyboardInterrupt: There is but one image.
    """
    stopped: list[StoppedError] = []
    try:
        yield stopped
    except KeyboardInterrupt:
        if len(images) == 1:
            raise
        stopped.append(StoppedError(f"stopped: {len(answers)} of {len(images)} images were {done}"))
    except KeylockError as error:
        if not answers:
            raise
        failures.append(error)


def raise_first(errors: Sequence[Exception]) -> None:
    """Raise the first of some errors, after a line for each of the others."""
    for error in errors[1:]:
        note(f"error: {error}")
    if errors:
        raise errors[0]
