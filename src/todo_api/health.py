"""Probes of liveness and readiness."""

import logging

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
        await request.app.state.database.check(_READY)
    except DatabaseUnavailable as error:
        logger.warning("not ready: %r", error.__cause__)
        return error_response(503, "Service is not ready", _NO_STORE)
    return JSONResponse({"status": "ok"}, headers=_NO_STORE)
