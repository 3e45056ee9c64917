"""The log: which call each line belongs to, and its two forms, for people and for machines that collect it."""

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Final

from keylock_server.transport.calls import current_call

__all__ = ["JsonFormatter", "TextFormatter", "log_fault", "name_calls"]

_LOG: Final = logging.getLogger("keylock_server.calls")
_LOGGERS: Final = ("keylock_server", "keylock_server.calls", "keylock_server.http")
_FIELDS: Final = ("worker", "request_id", "method", "code", "reason", "milliseconds")


def name_calls(*, worker: int | None = None) -> None:
    """Gives each line that the server logs for a call the attribute `request_id`, however the log is formatted.

    Args:
        worker: Which of several processes this is; each line then has the attribute `worker`.
    """
    for name in _LOGGERS:
        # A filter is added once, however often it is given.
        logging.getLogger(name).addFilter(_name_call)
        if worker is not None:
            logging.getLogger(name).addFilter(lambda record: _name_worker(record, worker))


def _name_call(record: logging.LogRecord) -> bool:
    call = current_call()
    if call is not None:
        record.request_id = call.request_id
    return True


def _name_worker(record: logging.LogRecord, worker: int) -> bool:
    record.worker = worker
    record.who = f"[{worker}]"
    return True


def log_fault(error: BaseException, name: str) -> None:
    """Logs where a fault happened and of what type it is; its text could quote a secret and is left out.

    Args:
        error: What happened.
        name: What the line begins with, for example the id that the caller was told.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    _LOG.error("%s: %s at %s", name, type(error).__qualname__, where)


class TextFormatter(logging.Formatter):
    """Writes time, level, logger, worker if there are several, id of the call, or `-` outside of calls, and message."""

    def __init__(self) -> None:
        """Makes the formatter."""
        form = "%(asctime)s %(levelname)s %(name)s%(who)s %(request_id)s: %(message)s"
        super().__init__(form, defaults={"request_id": "-", "who": ""})
        self._second, self._written = -1, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - of `logging`
        """Returns the time of a record as `logging` writes it, but looks the calendar up once a second."""
        second = int(record.created)
        if second != self._second:
            self._second, self._written = second, super().formatTime(record, datefmt or self.default_time_format)
        return f"{self._written},{int(record.msecs):03d}" if datefmt is None else self._written


class JsonFormatter(logging.Formatter):
    """Writes time, level, logger and message, and for calls what is known about them as fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns a record as one line of JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info is not None and record.exc_info[0] is not None:
            # The type alone: the text of an exception could quote a secret.
            entry["exception"] = record.exc_info[0].__name__
        return json.dumps(entry, ensure_ascii=False)
