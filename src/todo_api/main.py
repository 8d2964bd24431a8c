"""Assembles the application. `app` is created on first access, not on import."""

import asyncio
import copy
import gc
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.authentication import AuthenticationBackend
from starlette.middleware import Middleware

from todo_api import docs, health, logs, openapi, routes, telemetry
from todo_api.admission import Admission
from todo_api.auth import checked_backend, load_backend
from todo_api.database import Database
from todo_api.door import Door
from todo_api.error_handlers import add_error_handlers
from todo_api.errors import SettingsError
from todo_api.middleware import CORS, CrashGuard, RequestLog
from todo_api.owner_route import OwnerRoute
from todo_api.settings import Settings
from todo_api.statements import STATEMENTS

# Requests leave no reference cycles, so the collector finds nothing. Under overload, with Python's default of 700, that
# took a twentieth of the processor's time.
GC_THRESHOLD = 10_000


def create_app(settings: Settings | None = None, auth_backend: AuthenticationBackend | None = None) -> FastAPI:
    """Create the application.

    `settings` are read from the environment unless given; `auth_backend` overrides the backend that they name. Without
    a backend, the user is `scope["user"]`, set by a middleware around the application; if that is missing too, every
    task operation answers 401. Raises `SettingsError`.
    """
    settings = settings or Settings.read()
    if auth_backend is not None:
        auth_backend = checked_backend(auth_backend, "auth_backend")
    elif settings.auth_backend is not None:
        auth_backend = load_backend(settings.auth_backend)
    traced = telemetry.is_on()
    database = telemetry.TracedDatabase(settings) if traced else Database(settings)
    app = openapi.TodoAPI(
        title="Todo API",
        version=version("todo-api"),
        summary="Personal task lists.",
        description=openapi.DESCRIPTION,
        license_info=openapi.LICENSE,
        openapi_tags=openapi.TAGS,
        routes=[
            *routes.router.routes,
            *health.router.routes,
            *(docs.router.routes if settings.docs_enabled else ()),
        ],
        middleware=_middleware(settings.cors_origins, Admission(database), traced=traced),
        telemetry=telemetry.config(on=traced),
        lifespan=_lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if settings.docs_enabled else None,
        docs_url=None,  # FastAPI's page would load scripts from another host
        redoc_url=None,
    )
    for route in [*app.routes]:
        assert isinstance(route, APIRoute)
        # Python's $ also matches before a trailing line break; such a path must not match.
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")
        if "GET" in (route.methods or ()):
            head = copy.copy(route)  # a separate route, because FastAPI would document both under one operation id
            head.methods, head.include_in_schema = {"HEAD"}, False
            app.routes.append(head)
    task_routes = [route for route in app.routes if isinstance(route, OwnerRoute)]
    for route in task_routes:
        same_path = [other.methods or set() for other in task_routes if other.path == route.path]
        route.methods_elsewhere = set().union(*same_path) - (route.methods or set())
    add_error_handlers(app)
    app.state.auth_backend = auth_backend
    app.state.database = database
    return app


def _middleware(cors_origins: tuple[str, ...], admission: Admission, *, traced: bool) -> list[Middleware]:
    """List the middleware, outermost first."""
    cors: dict[str, Any] = {
        "allow_origins": cors_origins,
        "allow_credentials": True,
        "allow_methods": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        "expose_headers": ["Location", "ETag", "Link", "Idempotency-Replayed", "Retry-After", "X-Request-ID"],
    }
    return [
        Middleware(Door, admission, **cors),
        Middleware(RequestLog),
        *([Middleware(telemetry.Redaction)] if traced else []),  # inside of the log, which knows the request's id
        Middleware(CORS, **cors),
        Middleware(CrashGuard),
    ]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    database: Database = app.state.database
    warming = asyncio.create_task(
        database.warm(STATEMENTS)
    )  # in the background: the service also starts without a database
    gc.collect()
    gc.freeze()  # full collections skip the objects that exist now, which shortens tail latency
    thresholds = gc.get_threshold()
    if thresholds[0]:  # 0 turns the collector off
        gc.set_threshold(max(GC_THRESHOLD, thresholds[0]), *thresholds[1:])
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    warming.cancel()
    await asyncio.wait([warming])
    await database.close()


def __getattr__(name: str) -> FastAPI:
    """Create `todo_api.main:app` from the environment; an invalid setting ends the process with one line."""
    if name != "app":
        raise AttributeError(name)
    logs.configure(logs.JSONFormatter())
    try:
        made = globals()["app"] = create_app()  # later accesses find the attribute
    except SettingsError as error:
        raise SystemExit(str(error)) from None
    return made
