"""Logs for machines: one JSON object per line on standard error; or text for people."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

STANDARD = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Time, level, event and process, and whatever was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname.lower(),
            "event": record.getMessage(), "pid": record.process, **extra(record),
        }  # fmt: skip
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """The same as words."""

    def format(self, record: logging.LogRecord) -> str:
        more = " ".join(f"{name}={value}" for name, value in extra(record).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment} {record.levelname.lower()}: {record.getMessage()} {more}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def extra(record: logging.LogRecord) -> dict[str, Any]:
    """What a record holds beside what every record has."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD}


def set_up(level: str, style: str) -> None:
    """Log the server's events, of this level and above, to standard error."""
    handler = logging.StreamHandler()
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logger = logging.getLogger("rankhoist")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level.upper())
