"""The documentation page: Swagger UI with all files from this service, because users enter tokens there."""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse, Response

router = APIRouter(prefix="/docs", include_in_schema=False)
# A package of files, of which nothing is imported.
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
)
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


def _asset(name: str) -> Response:
    headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return FileResponse(_ASSETS / name, headers=headers)


@router.get("")
async def page() -> Response:
    """Send the page, which may load and ask nothing but this service."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"})


@router.get(f"/{_SCRIPT}")
async def script() -> Response:
    """Send Swagger UI."""
    return _asset(_SCRIPT)


@router.get(f"/{_STYLE}")
async def style() -> Response:
    """Send its style."""
    return _asset(_STYLE)
