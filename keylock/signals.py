"""Which signals stop a program. Nothing is imported here that a process must not have before it forks."""

import signal
from typing import Final

__all__ = ["stopping_signals"]

_ALWAYS: Final = (signal.SIGTERM, signal.SIGINT)


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Returns SIGTERM, SIGINT and, unless it is ignored as under nohup, SIGHUP: that of a terminal that was closed."""
    hangup: signal.Signals | None = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return _ALWAYS
    return (*_ALWAYS, hangup)
