"""Entity tags, and the requests that are only meant for some of them (RFC 9110, sections 8.8.3 and 13)."""

import json
import re
from hashlib import sha256

from starlette.datastructures import Headers

# Possessive: time grows with the length, whatever the text.
_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*+"'
_LIST = re.compile(rf"[ \t]*+(?:{_TAG}[ \t]*+)?+(?:,[ \t]*+(?:{_TAG}[ \t]*+)?+)*+")
ANY = "*"


def task_tag(task: str) -> str:
    """Make the tag of a task: its id, and `updated_at`, which never repeats."""
    fields = json.loads(task)
    return f'"{fields["id"]}-{fields["updated_at"]}"'


def list_tag(tasks: str, link: str = "") -> str:
    """Make the tag of a list, and of the link that comes with it."""
    return f'"{sha256(f"{link} {tasks}".encode()).hexdigest()}"'


def is_known(tag: str, headers: Headers) -> bool:
    """Tell whether `If-None-Match` says that the client has what the tag stands for."""
    tags = _tags(headers, "if-none-match")
    return tags is not None and (ANY in tags or tag in [known.removeprefix("W/") for known in tags])


def expected_versions(task_id: int, headers: Headers) -> list[str] | None:
    """List the `updated_at` of those versions of a task that `If-Match` allows to be changed; None means any."""
    tags = _tags(headers, "if-match")
    if tags is None or ANY in tags:
        return None
    prefix = f'"{task_id}-'
    return [tag[len(prefix) : -1] for tag in tags if tag.startswith(prefix)]


def _tags(headers: Headers, name: str) -> list[str] | None:
    """Read a list of tags, all lines of it: None without one, empty where it is malformed."""
    lines = headers.getlist(name)
    if not lines:
        return None
    value = ",".join(lines)
    if value.strip(" \t") == ANY:
        return [ANY]
    return re.findall(_TAG, value) if _LIST.fullmatch(value) else []
