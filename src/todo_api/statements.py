"""All SQL on tasks.

Each statement is built once, from the models, and returns one text column: the response's JSON, produced by
PostgreSQL. So an operation is one round trip, the service does not parse and serialize tasks, and the type of the
result is fixed, so that no later migration can invalidate a prepared statement.

On a distributed table, Citus rejects functions that are not IMMUTABLE in two places of a write: applied to a column,
and anywhere in RETURNING, CASE or COALESCE. So writes return plain columns, and an outer SELECT formats times.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    LargeBinary,
    Select,
    Subquery,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped
from sqlmodel import col

from todo_api.models import CREATED, KEYED, NULLABLE, TASK_FIELDS, UPDATED, Task

_UTC: ColumnElement[str] = literal_column("'UTC'")
# Every SELECT, UPDATE and DELETE below has one of these conditions: all rows of the owner, or one of them.
_OWNER: ColumnElement[str] = bindparam("owner", type_=Text)
_own_tasks = col(Task.user_id) == _OWNER
_own_task = and_(_own_tasks, col(Task.id) == bindparam("task_id", type_=BigInteger))


def _column(name: str) -> ColumnElement[Any]:
    column: ColumnElement[Any] = getattr(Task, name)
    return column


def _utc(time: ColumnElement[Any] | Mapped[Any]) -> ColumnElement[str]:
    """Format a time as text, independently of the session's time zone."""
    pattern: ColumnElement[str] = literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'""")
    return func.to_char(func.timezone(_UTC, time), pattern)


def _response_column(column: ColumnElement[Any]) -> ColumnElement[Any]:
    is_time = TASK_FIELDS[column.name].schema.get("format") == "date-time"
    return _utc(column).label(column.name) if is_time else column


def _new_value(name: str) -> ColumnElement[Any]:
    """Bind a field's value from the request, as the parameter `new_<field>`."""
    return bindparam(f"new_{name}", type_=_column(name).type)


def _new_or_current(name: str) -> ColumnElement[Any]:
    """Select a field's new value if the request has one, else the old; null is a value only for a nullable column."""
    if name in NULLABLE:
        return case((bindparam(f"has_{name}", type_=Boolean), _new_value(name)), else_=_column(name))
    return func.coalesce(_new_value(name), _column(name))


_fields = [_column(name) for name in TASK_FIELDS]
_answer = [_response_column(column) for column in _fields]


def _json(rows: CTE | Subquery) -> ColumnElement[Any]:
    return func.row_to_json(rows.table_valued())


def _task(rows: CTE) -> Subquery:
    return select(*[_response_column(column) for column in rows.c if column.name in TASK_FIELDS]).subquery("task")


def _one(rows: CTE) -> Select[Any]:
    return select(cast(_json(_task(rows)), Text))


def _list(*conditions: ColumnElement[bool]) -> Select[Any]:
    rows = select(*_answer).where(_own_tasks, *conditions).order_by(col(Task.id).desc()).subquery("task")
    return select(cast(func.coalesce(func.json_agg(_json(rows)), literal_column("'[]'")), Text))


def _page(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Select `<id> <JSON array>`: a page, and the id of its last task if more follow (fetches limit + 1)."""
    limit = bindparam("limit", type_=Integer)
    rows = (
        select(*_answer)
        .where(_own_tasks, col(Task.id) <= bindparam("newest", type_=BigInteger), *conditions)
        .order_by(col(Task.id).desc())
        .limit(limit + 1)
        .subquery("task")
    )
    last = case((func.count() > limit, func.array_agg(rows.c.id)[limit]))
    page = func.array_to_json(func.array_agg(_json(rows), type_=ARRAY(JSON))[1:limit])
    return select(func.concat(last, literal_column("' '"), func.coalesce(page, literal_column("'[]'"))))


# `updated_at` is the task's version: it increases with every change, even if the clock has not advanced.
# Adding to a time in UTC is IMMUTABLE; adding to a timestamptz is not, since a day's length depends on the time zone.
_next_version: ColumnElement[Any] = func.timezone(
    _UTC, func.timezone(_UTC, col(Task.updated_at)) + literal_column("interval '1 microsecond'")
)
_is_complete = col(Task.status) == "complete"
_has_status = col(Task.status) == bindparam("status", type_=Text)
_new_row = {"user_id": _OWNER, **{name: _new_value(name) for name in CREATED}}
_fingerprint = bindparam("fingerprint", type_=LargeBinary)
_request = bindparam("request", type_=Uuid)

LIST = _list()
LIST_BY_STATUS = _list(_has_status)
PAGE = _page()
PAGE_BY_STATUS = _page(_has_status)
GET = _one(select(*_fields).where(_own_task).cte("found"))
CREATE = _one(insert(Task).values(_new_row).returning(*_fields).cte("written"))
# ON CONFLICT DO UPDATE, which sets the key to the same value, waits for a concurrent insert of the same key and returns
# its row. DO NOTHING returns no row, and a SELECT in the same statement may not see the task. The first word of the
# result is the outcome.
_keyed = (
    postgresql.insert(Task)
    .values(
        {
            **_new_row,
            "idempotency_key": bindparam("key", type_=Text),
            "idempotency_fingerprint": _fingerprint,
            "idempotency_request": _request,
        }
    )
    .on_conflict_do_update(
        index_elements=["user_id", "idempotency_key"],
        index_where=KEYED,
        set_={"idempotency_key": col(Task.idempotency_key)},
    )
    .returning(
        *_fields,
        case(
            (col(Task.idempotency_request) == _request, literal_column("'created '")),
            (col(Task.idempotency_fingerprint) == _fingerprint, literal_column("'replayed '")),
            else_=literal_column("'reused '"),
        ).label("outcome"),
    )
    .cte("written")
)
CREATE_ONCE = select(func.concat(select(_keyed.c.outcome).scalar_subquery(), _json(_task(_keyed))))
# One statement for every combination of fields, so that each connection prepares only one.
_update = (
    update(Task)
    .where(_own_task)
    .values(
        {name: _new_or_current(name) for name in UPDATED} | {"updated_at": func.greatest(func.now(), _next_version)}
    )
    .returning(*_fields)
)
# Updates the row even if it is complete already. With WHERE status <> 'complete' and a fallback SELECT there is a race:
# the SELECT was seen to return the old status when a concurrent request completed the task.
_complete = (
    update(Task)
    .where(_own_task)
    .values(
        status="complete",
        # A complete task keeps its `updated_at`; another gets the later of now() and the next version. now() is not
        # allowed in CASE (see above), so it is in LEAST, which ignores nulls.
        updated_at=func.greatest(
            case((_is_complete, col(Task.updated_at)), else_=_next_version),
            func.least(func.now(), case((_is_complete, col(Task.updated_at)))),
        ),
    )
    .returning(*_fields)
)
_delete = delete(Task).where(_own_task).returning(col(Task.id))
UPDATE, COMPLETE, DELETE = (_one(write.cte("written")) for write in (_update, _complete, _delete))

_version_matches = col(Task.updated_at) == any_(bindparam("versions", type_=ARRAY(DateTime(timezone=True))))
_precondition_holds = _version_matches == bindparam("must_match", type_=Boolean)


def _with_precondition(write: CTE) -> Select[Any]:
    """Select the task if the precondition held, '' if it did not (412), null if there is no such task (404)."""
    # FOR KEY SHARE waits for a concurrent DELETE, after which the task is not found here either.
    exists: Select[Any] = select(literal_column("''")).where(_own_task).with_for_update(read=True, key_share=True)
    return select(func.coalesce(_one(write).scalar_subquery(), exists.scalar_subquery()))


UPDATE_IF, COMPLETE_IF, DELETE_IF = (
    _with_precondition(write.where(_precondition_holds).cte("written")) for write in (_update, _complete, _delete)
)

STATEMENTS = (
    LIST,
    LIST_BY_STATUS,
    PAGE,
    PAGE_BY_STATUS,
    GET,
    CREATE,
    CREATE_ONCE,
    UPDATE,
    UPDATE_IF,
    COMPLETE,
    COMPLETE_IF,
    DELETE,
    DELETE_IF,
)
