"""Structured logs: one JSON object a line, for machines that collect them."""

import json
import logging
from datetime import UTC, datetime
from typing import Final

__all__ = ["JsonFormatter"]

_FIELDS: Final = ("method", "code", "reason", "milliseconds")


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
