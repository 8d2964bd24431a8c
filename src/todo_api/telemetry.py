"""Traces and metrics by OpenTelemetry: FastAPI reports requests, this module statements and the pool.

They are on if the environment names an endpoint to export to. Otherwise no request runs code of this module.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from time import perf_counter
from urllib.parse import unquote, urlsplit

from fastapi.telemetry import TelemetryConfig
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import ClauseElement
from starlette.types import ASGIApp, Receive, Scope, Send

from todo_api import logs
from todo_api.database import Database, Interrupt, Query
from todo_api.database.query import as_query
from todo_api.settings import Settings

logger = logging.getLogger(__name__)
_ENDPOINTS = [f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT" for signal in ("", "TRACES_", "METRICS_")]
_TARGET = re.compile(r'(INSERT INTO|UPDATE|DELETE FROM|FROM) "?(\w+)')


def is_on() -> bool:
    """Tell whether the environment names an endpoint to export to, and does not disable the SDK."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(os.environ.get(name) for name in _ENDPOINTS)


def config(*, on: bool) -> TelemetryConfig:
    """Configure FastAPI's part: a span and metrics for each request, and no logs, which contain exception texts."""
    return {"tracing": on, "metrics": on, "logs": False, "operation_spans": False, "auto_configure": on}


class Redaction:
    """Remove the client's text from a request's span, and add the request id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            span = trace.get_current_span()
            if not self._started and not span.get_span_context().is_valid:
                logger.warning("traces and metrics are off: the lifespan, which sets up their export, did not run")
            span.set_attribute("url.path", "REDACTED")
            if scope["query_string"]:
                span.set_attribute("url.query", "REDACTED")
            span.set_attribute("http.request.header.x-request-id", [logs.request_id.get() or ""])
        self._started = True  # the lifespan, if the server runs it, starts before the first request
        await self.app(scope, receive, send)


class TracedDatabase(Database):
    """A database that reports a span for each statement, and metrics of statements and pool."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        name = unquote(urlsplit(settings.database_url.get_secret_value()).path[1:])
        self._namespace = {"db.namespace": name}
        self._pool = {"db.client.connection.pool.name": name}
        # Providers that the start of the application sets are found by what these give out before.
        self._tracer = trace.get_tracer_provider().get_tracer("todo_api")
        meter = metrics.get_meter_provider().get_meter("todo_api")
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of statements, with the wait for a connection.",
            explicit_bucket_boundaries_advisory=[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10],
        )
        gauge = meter.create_observable_up_down_counter
        gauge("db.client.connection.count", [self._count], "{connection}", "Connections, used and idle.")
        gauge("db.client.connection.max", [self._max], "{connection}", "The most connections that are opened.")
        gauge("db.client.connection.pending_requests", [self._pending], "{request}", "Waiting for a connection.")
        wait = meter.create_histogram(
            "db.client.connection.wait_time",
            "s",
            "Time in the queue for a connection, of those who had to wait.",
            explicit_bucket_boundaries_advisory=[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10],
        )
        self._connections.record_wait = lambda seconds: wait.record(seconds, self._pool)
        counter = meter.create_observable_counter
        counter("todo_api.requests.refused", [self._refused], "{request}", "Answered 503, by where that was decided.")

    async def run(
        self, statement: ClauseElement | Query, parameters: Mapping[str, object], interrupt: Interrupt | None = None
    ) -> str | None:
        """Run one statement as `Database` does, in a span that its caller waits for."""
        started = perf_counter()
        operation, text = _describe(statement)
        attributes = self._namespace | operation
        name = f"{operation['db.operation.name']} {operation['db.collection.name']}"
        with self._tracer.start_as_current_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={**attributes, "db.query.text": text},
            record_exception=False,  # its text may hold anything
            set_status_on_exception=False,
        ) as span:
            try:
                return await super().run(statement, parameters, interrupt)
            except Exception as error:
                attributes["error.type"] = type(error).__qualname__
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(StatusCode.ERROR)
                raise
            finally:
                self._duration.record(perf_counter() - started, attributes)

    def _count(self, _: CallbackOptions) -> Iterable[Observation]:
        for state, connections in (("used", self._connections.used), ("idle", self._connections.idle)):
            yield Observation(connections, self._pool | {"db.client.connection.state": state})

    def _max(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._connections.limit, self._pool)

    def _refused(self, _: CallbackOptions) -> Iterable[Observation]:
        for where, number in self.refusals.counts.items():
            yield Observation(number, {"where": where})

    def _pending(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._connections.waiting, self._pool)


@lru_cache(maxsize=64)  # every statement is built once
def _describe(statement: ClauseElement | Query) -> tuple[dict[str, str], str]:
    """Return OpenTelemetry's attributes of a statement, and its text, which contains no values."""
    text = as_query(statement).text
    verb, table = _TARGET.findall(text)[0]
    operation = "SELECT" if verb == "FROM" else verb.split()[0]
    return {"db.system.name": "postgresql", "db.operation.name": operation, "db.collection.name": table}, text
