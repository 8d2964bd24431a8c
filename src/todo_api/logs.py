"""The shape of the log: for people in development, one JSON object a line in production."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_encode = json.JSONEncoder(default=str).encode


class TextFormatter(logging.Formatter):
    """Lines for a person, each with the id of its request."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s [%(request_id)s]")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        record.request_id = request_id.get() or "-"
        return super().format(record)


class JSONFormatter(logging.Formatter):
    """One JSON object a line, with the id of its request and whatever fields the record has."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.args, dict):
            line |= record.args
        if identifier := request_id.get():
            line["request_id"] = identifier
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


def configure(formatter: logging.Formatter) -> None:
    """Write what the service and its server log to standard error, unless logging was configured before."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root.addHandler(handler)
    logging.getLogger("todo_api").setLevel(logging.INFO)
    server = logging.getLogger("uvicorn")
    server.handlers.clear()
    server.propagate = True
    # Its lines would be second ones about each request, and hold the path.
    logging.getLogger("uvicorn.access").handlers.clear()
