"""Maps exceptions to responses: every error on every path has the same body shape."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match

from todo_api.auth import is_rejection, reason
from todo_api.errors import ApiError, Busy, DatabaseUnavailable, Unauthorized

logger = logging.getLogger(__name__)


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Build an error response in the common shape."""
    return JSONResponse({"error": message}, status_code=status, headers=headers)


def last_response(error: BaseException) -> JSONResponse:
    """Build the response to an unhandled exception: 401 if a middleware rejected credentials, otherwise 500.

    The cause is logged, and not sent to the client.
    """
    if is_rejection(error):
        logger.info("rejected by a middleware: %s", reason(error))
        return api_response(Unauthorized())
    logger.error("crashed", exc_info=error)
    return error_response(500, "Internal server error")


def shutdown_response() -> JSONResponse:
    """Build the response to a request that the server's shutdown cancelled; its write may have been applied."""
    logger.error("cut off by the server's shutdown")
    return error_response(500, "Internal server error", {"Retry-After": str(DatabaseUnavailable.retry_after)})


async def _crash_outside(_: Request, __: Exception) -> JSONResponse:
    return error_response(500, "Internal server error")  # Starlette re-raises the exception, and the server logs it


def api_response(error: ApiError) -> JSONResponse:
    """Build the response to a request that fails."""
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, (Busy, DatabaseUnavailable)):
        headers["Retry-After"] = str(error.retry_after)
    return error_response(error.status, error.message, headers)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return api_response(error)


async def _database_unavailable(request: Request, error: Exception) -> JSONResponse:
    logger.error("database unavailable: %r", error.__cause__)
    return await _api_error(request, error)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(404, "Not found")
    if error.status_code == 405:
        # Starlette names the methods of the first route that matches; the path may have more. A mounted application
        # names its own methods, under its own `root_path`.
        root_path = request.scope.get("app_root_path", request.scope.get("root_path", ""))
        scope = {**request.scope, "root_path": root_path}
        matching = [route for route in request.app.routes if route.matches(scope)[0] is not Match.NONE]
        methods = sorted({method for route in matching for method in getattr(route, "methods", None) or ()})
        allowed = {"Allow": ", ".join(methods)} if methods else error.headers
        return error_response(405, "Method not allowed", allowed)
    return last_response(error)


def add_error_handlers(app: FastAPI) -> None:
    """Register a handler for every exception that the application raises."""
    app.add_exception_handler(Exception, _crash_outside)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(DatabaseUnavailable, _database_unavailable)
    app.add_exception_handler(HTTPException, _http_exception)
