"""The documentation page: Swagger UI with all files from this service, because users enter tokens there."""

import re
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import RedirectResponse, Response

from todo_api.conditions import is_known

router = APIRouter(include_in_schema=False)
# The package is used for its static files only, and not imported.
_ASSETS = Path(str(distribution("fastapi-offline").locate_file("fastapi_offline/static")))
_SCRIPT = "swagger-ui-bundle.js"
_STYLE = "swagger-ui.css"
# Relative URLs, so that they work under any root path.
_PAGE = bytes(
    get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Todo API",
        swagger_js_url=f"docs/{_SCRIPT}",
        swagger_css_url=f"docs/{_STYLE}",
        swagger_favicon_url="data:,",
    ).body
    # The document has no links, and their empty column makes the page too wide for a phone.
).replace(b"</head>", b"<style>.swagger-ui .response-col_links { display: none }</style></head>")
_PAGE_DIGEST = sha256(_PAGE).hexdigest()
_INLINE = re.findall(b"<script>(.*?)</script>", _PAGE, re.DOTALL)
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        f"script-src 'self' 'sha256-{b64encode(sha256(_INLINE[0]).digest()).decode()}'",
        "style-src 'self' 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_CACHED = {"Cache-Control": "public, max-age=3600"}


@cache
def _asset(name: str) -> tuple[bytes, str]:
    content = (_ASSETS / name).read_bytes()
    return content, sha256(content).hexdigest()


def _send(request: Request, content: bytes, digest: str, media_type: str, headers: Mapping[str, str]) -> Response:
    headers = {**headers, "ETag": f'"{digest}"', "X-Content-Type-Options": "nosniff"}
    if is_known(headers["ETag"], request.headers):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


@router.get("/")
async def home() -> Response:
    """Redirect to the page."""
    return RedirectResponse("docs")


@router.get("/docs")
async def page(request: Request) -> Response:
    """Send the page, with a policy that allows it to load from and connect to this service only."""
    return _send(request, _PAGE, _PAGE_DIGEST, "text/html", {"Content-Security-Policy": _POLICY})


@router.get(f"/docs/{_SCRIPT}")
async def script(request: Request) -> Response:
    """Send Swagger UI."""
    return _send(request, *_asset(_SCRIPT), "text/javascript", _CACHED)


@router.get(f"/docs/{_STYLE}")
async def style(request: Request) -> Response:
    """Send Swagger UI's stylesheet."""
    return _send(request, *_asset(_STYLE), "text/css", _CACHED)
