"""A statement's text, its name, and the order of its parameters."""

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, cast

from sqlalchemy import ClauseElement, Select, make_url
from sqlalchemy.sql import visitors

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

_DIALECT = make_url("postgresql+asyncpg://").get_dialect()()


class Query:
    """A statement compiled for PostgreSQL: its text, and its parameters in the order of their numbers.

    It is prepared as `name`, a hash of the text, so that a name means the same statement in all processes behind a
    pooler. `is_read` is true for a SELECT that neither writes nor locks: only such a statement is retried after it may
    have run.
    """

    def __init__(self, statement: ClauseElement) -> None:
        compiled = cast("SQLCompiler", statement.compile(dialect=_DIALECT))
        self.text = str(compiled)
        self.name = f"todo_{sha256(self.text.encode()).hexdigest()[:40]}"
        self.is_read = isinstance(statement, Select) and not any(_writes(part) for part in visitors.iterate(statement))
        self._names = compiled.positiontup or []
        self._values = [compiled.params[name] for name in self._names]

    def arguments(self, parameters: Mapping[str, object]) -> list[object]:
        """Put the parameters in order; a missing one gets its value in the statement, or null."""
        return [*map(parameters.get, self._names, self._values)]


def _writes(part: object) -> bool:
    return getattr(part, "is_dml", False) or getattr(part, "_for_update_arg", None) is not None


_cached = cache(Query)  # statements are module constants


def as_query(statement: ClauseElement | Query) -> Query:
    """Return the query of a statement, compiled once."""
    return statement if isinstance(statement, Query) else _cached(statement)
