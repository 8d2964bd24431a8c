"""Pages of a list: reads `limit` and `cursor`, and builds the link to the next page."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from todo_api.errors import BadRequest
from todo_api.models import MAX_ID, Status

MAX_LIMIT = 1000
INVALID_LIMIT = f"Invalid limit. Must be between 1 and {MAX_LIMIT}"
_DEFAULT_LIMIT = 100
_LIMIT = re.compile("[1-9][0-9]{0,3}")
_CURSOR = re.compile("[A-Za-z0-9_-]{32}")


class Page(NamedTuple):
    """At most `limit` tasks with ids up to `newest`, newest first."""

    limit: int
    newest: int


def read_page(query: QueryParams, owner: str, status: Status | None) -> Page | None:
    """Read the requested page, None for the whole list; raise `BadRequest` for an invalid limit or cursor."""
    limits, cursors = query.getlist("limit"), query.getlist("cursor")
    if not limits and not cursors:
        return None
    limit = _DEFAULT_LIMIT
    if limits:
        if len(limits) > 1 or not _LIMIT.fullmatch(limits[0]) or int(limits[0]) > MAX_LIMIT:
            raise BadRequest(INVALID_LIMIT)
        limit = int(limits[0])
        # With these ignored, a client that pages by them would get the first page each time.
        if not query.keys().isdisjoint(("offset", "page", "skip")):
            raise BadRequest("Invalid paging. Follow the Link header to the next page")
    if not cursors:
        return Page(limit, MAX_ID)
    if len(cursors) > 1 or not _CURSOR.fullmatch(cursors[0]):
        raise BadRequest("Invalid cursor")
    last = int.from_bytes(urlsafe_b64decode(cursors[0])[:8])
    if not 0 < last <= MAX_ID or cursors[0] != _cursor(owner, status, last):
        raise BadRequest("Invalid cursor")
    return Page(limit, last - 1)


def next_link(owner: str, status: Status | None, limit: int, last: int) -> str:
    """Build the `Link` to the page after the task `last`: a relative URL, so that it works behind any proxy."""
    query = {"status": status} if status else {}
    return f'<?{urlencode({**query, "limit": limit, "cursor": _cursor(owner, status, last)})}>; rel="next"'


def _cursor(owner: str, status: Status | None, last: int) -> str:
    """Encode a position in one owner's list. It needs no secret: a forged one is another position in the same list."""
    digest = sha256(json.dumps([owner, status, last]).encode()).digest()
    return urlsafe_b64encode(last.to_bytes(8) + digest[:16]).decode()
