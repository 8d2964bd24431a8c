"""Log formats: plain text in development, one JSON object per line in production."""

import asyncio
import json
import logging
from contextlib import nullcontext
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import orjson

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
# The attributes that every record has; any others come from `extra`.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


class BatchHandler(logging.StreamHandler[TextIO]):
    """Write the records of one iteration of the event loop together, which takes half the time.

    A warning, an error, or a record from a thread without an event loop is written at once, after those before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._records: list[tuple[logging.LogRecord, Context]] = []
        self._flushing_on: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, at the latest in the next iteration of the event loop."""
        self._records.append((record, copy_context()))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or record.levelno >= logging.WARNING:
            self.flush()
        elif loop is not self._flushing_on:
            self._flushing_on = loop
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write all records, each formatted in its own context."""
        with self.lock or nullcontext():
            records, self._records, self._flushing_on = self._records, [], None
            if text := "".join([self._line(*given) for given in records]):
                self.stream.write(text)
            super().flush()

    def _line(self, record: logging.LogRecord, context: Context) -> str:
        try:
            return context.run(self.format, record) + self.terminator
        except Exception:  # noqa: BLE001  # like every handler, which reports what it cannot format
            self.handleError(record)
            return ""


class TextFormatter(logging.Formatter):
    """Plain text lines with the request id."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s [%(request_id)s]")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        record.request_id = request_id.get() or "-"
        return super().format(record)


class JSONFormatter(logging.Formatter):
    """One JSON object per line, with the request id and the record's fields.

    A record's fields are those of a dict that is its only argument, and those of `extra`. They never replace the
    formatter's own keys.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}+00:00",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identifier := request_id.get():
            line["request_id"] = identifier
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        fields = record.args if isinstance(record.args, dict) else {}
        if record.__dict__.keys() - _STANDARD:
            fields = {name: value for name, value in record.__dict__.items() if name not in _STANDARD} | fields
        line = line | fields | line  # the formatter's keys come first and keep their values
        try:
            encoded = orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS)
        except orjson.JSONEncodeError:  # a lone surrogate, an integer over 64 bits, or a cycle
            return json.dumps({str(name): str(value) for name, value in line.items()})
        # ASCII only, because some log readers treat U+2028 and similar characters as line breaks.
        return encoded.decode() if encoded.isascii() else json.dumps(orjson.loads(encoded))


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def configure(formatter: logging.Formatter) -> None:
    """Send the logs of the service and of uvicorn to standard error, unless logging is already configured."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = BatchHandler()
    handler.setFormatter(formatter)
    root.addHandler(handler)
    logging.getLogger("todo_api").setLevel(logging.INFO)
    server = logging.getLogger("uvicorn")
    server.handlers.clear()
    server.propagate = True
    # The access log would repeat each request's line, with the path in it.
    logging.getLogger("uvicorn.access").handlers.clear()
