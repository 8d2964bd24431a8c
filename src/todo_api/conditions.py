"""Entity tags and conditional requests (RFC 9110, sections 8.8.3 and 13)."""

import re
from hashlib import sha256

from starlette.datastructures import Headers

# Possessive quantifiers keep these linear on hostile input.
_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*+"'
_LIST = re.compile(rf"[ \t]*+(?:{_TAG}[ \t]*+)?+(?:,[ \t]*+(?:{_TAG}[ \t]*+)?+)*+")
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


def is_known(tag: str, headers: Headers) -> bool:
    """Tell whether `If-None-Match` names the tag, so that the client has the body already."""
    tags = _tags(headers, "if-none-match")
    return tags is not None and (ANY in tags or tag in [known.removeprefix("W/") for known in tags])


def expected_versions(task_id: int, headers: Headers) -> list[str] | None:
    """List the versions of a task that `If-Match` allows to be changed; None means any."""
    tags = _tags(headers, "if-match")
    if tags is None or ANY in tags:
        return None
    prefix = f'"{task_id}-'
    return [tag[len(prefix) : -1] for tag in tags if tag.startswith(prefix)]


def _tags(headers: Headers, name: str) -> list[str] | None:
    """Read a list of tags from all lines of a header: None without the header, empty if it is malformed."""
    lines = headers.getlist(name)
    if not lines:
        return None
    value = ",".join(lines)
    if value.strip(" \t") == ANY:
        return [ANY]
    return re.findall(_TAG, value) if _LIST.fullmatch(value) else []
