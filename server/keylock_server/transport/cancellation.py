"""Work on a call that nobody waits for any more."""

import threading
from concurrent.futures import CancelledError

__all__ = ["stop_if"]


def stop_if(abandoned: threading.Event) -> None:
    """Ends the work on a request that nobody waits for.

    Raises:
        CancelledError: If it was abandoned.
    """
    if abandoned.is_set():
        raise CancelledError
