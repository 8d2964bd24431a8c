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
    """A statement as PostgreSQL takes it: its text, and its parameters in the order of their numbers.

    It is prepared as `name`, a hash of the text, so that one name means one statement in all processes behind a pooler.
    `is_read` tells a SELECT that writes and locks nothing. Only such a statement is ever sent a second time.
    """

    def __init__(self, statement: ClauseElement) -> None:
        compiled = cast("SQLCompiler", statement.compile(dialect=_DIALECT))
        self.text = str(compiled)
        self.name = f"todo_{sha256(self.text.encode()).hexdigest()[:40]}"
        self.is_read = isinstance(statement, Select) and not any(_writes(part) for part in visitors.iterate(statement))
        self._parameters = [(name, compiled.params[name]) for name in compiled.positiontup or []]

    def arguments(self, parameters: Mapping[str, object]) -> list[object]:
        """Put the parameters in order; one that is not given has the statement's own value, or is null."""
        return [parameters.get(name, value) for name, value in self._parameters]


def _writes(part: object) -> bool:
    return getattr(part, "is_dml", False) or getattr(part, "_for_update_arg", None) is not None


_made = cache(Query)  # statements are module constants


def as_query(statement: ClauseElement | Query) -> Query:
    """Return the query of a statement, made once and kept."""
    return statement if isinstance(statement, Query) else _made(statement)
