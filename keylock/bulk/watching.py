"""Ray's processes that a job stands on: where one does not answer any more, the job ends with an error.

Ray's C++ core would end the whole process with code 1 and without a word: a minute after the head of the cluster has
gone, and seconds after Ray's own process on this machine has.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from keylock.errors import ServiceError

__all__ = ["reach", "watched"]

_PATIENCE_S: Final = 5.0
_EVERY_S: Final = 0.5
# Without its head Ray takes twenty seconds to end.
_SILENCE_OF_HEAD_S: Final = 15.0
_SILENCE_OF_NODE_S: Final = 1.0


def reach(host: str, port: int) -> None:
    """Returns when something listens at an address; raises `OSError` where nothing does."""
    socket.create_connection((host, port), timeout=_PATIENCE_S).close()


@contextmanager
def watched(*, head: str, node: str) -> Iterator[None]:
    """Interrupts the block when one of two has not answered for a while; outside of the main thread it cannot.

    Args:
        head: `HOST:PORT` of the cluster's head.
        node: `HOST:PORT` of Ray's process on this machine.

    Raises:
        ServiceError: If one does not answer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    done, gone = threading.Event(), list[str]()
    silences = {head: _SILENCE_OF_HEAD_S, node: _SILENCE_OF_NODE_S}

    def watch() -> None:
        heard_s = dict.fromkeys(silences, time.monotonic())
        while not done.wait(_EVERY_S):
            for address, longest_s in silences.items():
                if _answers(address):
                    heard_s[address] = time.monotonic()
                elif time.monotonic() - heard_s[address] > longest_s:
                    gone.append(address)
                    # The only thing that is heard while Ray is waited for.
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    threading.Thread(target=watch, name="keylock-ray", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not gone:
            raise
        raise ServiceError(
            f"Ray at {gone[0]} does not answer any more: was it stopped, had it too little memory, or was its machine "
            "shut down? Run the same command again to go on"
        ) from None
    finally:
        done.set()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        reach(host.strip("[]"), int(port))
    except OSError:
        return False
    return True
