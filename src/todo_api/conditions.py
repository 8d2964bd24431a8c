"""Entity tags and conditional requests (RFC 9110, sections 8.8.3 and 13)."""

import re
from hashlib import sha256

from starlette.datastructures import Headers

from todo_api.tasks import Versions

# Possessive quantifiers keep these linear on hostile input.
_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*+"'
_LIST = re.compile(rf"[ \t]*+(?:{_TAG}[ \t]*+)?+(?:,[ \t]*+(?:{_TAG}[ \t]*+)?+)*+")
_TAGS = re.compile(_TAG)
_ENCODING = re.compile('-(?:gzip|br|zstd)"$')
ANY = "*"
# The id and the version in the JSON of a task. Quotes within strings are escaped, so only the keys can match.
_VERSION = re.compile(r'^\{"id":([0-9]+),.*,"updated_at":"([^"]+)"', re.DOTALL)


def task_id_and_version(task: str) -> tuple[str, str]:
    """Extract the id and the version, which is `updated_at`, from the JSON of a task."""
    found = _VERSION.match(task)
    assert found
    return found[1], found[2]


def task_tag(task_id: str, version: str) -> str:
    """Build the entity tag of one version of a task."""
    return f'"{task_id}-{version}"'


def list_tag(tasks: str, link: str = "") -> str:
    """Build the entity tag of a list and its `Link` header."""
    return f'"{sha256(f"{link} {tasks}".encode()).hexdigest()}"'


def is_expected(tag: str, headers: Headers) -> bool:
    """Tell whether `If-Match` allows the version with this tag to be read."""
    tags = _tags(headers, b"if-match")
    return tags is None or ANY in tags or tag in tags


def is_known(tag: str, headers: Headers) -> bool:
    """Tell whether `If-None-Match` matches the tag, so that the response is 304."""
    tags = _tags(headers, b"if-none-match")
    return tags is not None and (ANY in tags or tag in tags)


def versions_to_change(task_id: int, headers: Headers) -> Versions | None:
    """Read from both headers which versions of a task may be changed; None means any."""
    expected, unwanted = _tags(headers, b"if-match"), _tags(headers, b"if-none-match") or []
    if ANY in unwanted:
        return Versions([], must_match=True)
    if expected is None or ANY in expected:
        return Versions(_versions(task_id, unwanted), must_match=False) if unwanted else None
    return Versions(_versions(task_id, [tag for tag in expected if tag not in unwanted]), must_match=True)


def _versions(task_id: int, tags: list[str]) -> list[str]:
    prefix = f'"{task_id}-'
    return [tag[len(prefix) : -1] for tag in tags if tag.startswith(prefix)]


def _tags(headers: Headers, name: bytes) -> list[str] | None:
    """Read a list of tags from all lines of a header: None without the header, empty if it is malformed.

    Tags are returned as the service sent them, although compressing proxies change them to `W/"…"` (nginx, Cloudflare)
    or `"…-gzip"` (Apache). A tag identifies a version, not its bytes, so it is the same in every encoding.
    """
    if name not in dict(headers.raw):
        return None
    value = b",".join([value for key, value in headers.raw if key == name]).decode("latin-1")
    if value.strip(" \t") == ANY:
        return [ANY]
    return (
        [_ENCODING.sub('"', tag.removeprefix("W/")) for tag in _TAGS.findall(value)] if _LIST.fullmatch(value) else []
    )
