"""Probes of liveness and readiness."""

import asyncio
import logging

import asyncpg
from fastapi import APIRouter, Request
from sqlalchemy import Text, false, func, inspect
from sqlmodel import cast, select
from starlette.responses import JSONResponse, Response

from todo_api.error_handlers import error_response
from todo_api.errors import DatabaseUnavailable
from todo_api.models import Task

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/health", include_in_schema=False)
_NO_STORE = {"Cache-Control": "no-store"}
# Probes need a fast answer, so they do not wait as long as requests for the database to wake.
READY_SECONDS = 2.0
# Selects every column that this version uses: it succeeds on a newer schema and fails on an older one.
_READY = select(cast(func.count(), Text)).select_from(select(*inspect(Task).columns).where(false()).subquery())


@router.get("")
@router.get("/live")
async def live() -> Response:
    """Report that the process handles requests."""
    return JSONResponse({"status": "ok"}, headers=_NO_STORE)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Report whether the database answers and has every column that this version uses."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            await request.app.state.database.run(_READY, {})
    except (DatabaseUnavailable, asyncpg.PostgresError, TimeoutError) as error:
        cause = error.__cause__ if isinstance(error, DatabaseUnavailable) else error
        logger.warning("not ready: %r", cause)
        return error_response(503, "Service is not ready", _NO_STORE)
    return JSONResponse({"status": "ok"}, headers=_NO_STORE)
