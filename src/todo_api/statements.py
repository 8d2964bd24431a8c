"""All SQL about tasks.

Each statement is built once, from the models, and ends in one text column: the answer's JSON, written by PostgreSQL.
That is one round trip, spares the service reading and writing every task again, and fixes the type of each result, so
that no later migration can break a prepared statement.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
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

from todo_api.models import KEYED, Task

# The owner's rows, and one of them: every statement below starts from these.
_OWNER: ColumnElement[str] = bindparam("owner", type_=Text)
_own_tasks = col(Task.user_id) == _OWNER
_own_task = and_(_own_tasks, col(Task.id) == bindparam("task_id", type_=BigInteger))


def _utc(moment: Mapped[datetime]) -> ColumnElement[str]:
    """Write a time the same way whatever the session's time zone."""
    pattern: ColumnElement[str] = literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'""")
    return func.to_char(func.timezone(literal_column("'UTC'"), moment), pattern)


_answer = (
    col(Task.id),
    col(Task.user_id),
    col(Task.title),
    col(Task.description),
    col(Task.status),
    _utc(col(Task.created_at)).label("created_at"),
    _utc(col(Task.updated_at)).label("updated_at"),
)


def _json(rows: CTE | Subquery) -> ColumnElement[Any]:
    return func.row_to_json(rows.table_valued())


def _one(rows: CTE) -> Select[Any]:
    return select(cast(_json(rows), Text))


def _list(*conditions: ColumnElement[bool]) -> Select[Any]:
    rows = select(*_answer).where(_own_tasks, *conditions).order_by(col(Task.id).desc()).subquery("task")
    return select(cast(func.coalesce(func.json_agg(_json(rows)), literal_column("'[]'")), Text))


def _page(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Select a page, behind the id of its last task if there are more: one more is looked at to know."""
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


# `updated_at` is the task's version: it grows with every change, even within one microsecond of the clock.
_later = func.greatest(func.now(), col(Task.updated_at) + literal_column("interval '1 microsecond'"))
_status = bindparam("status", type_=Text)
_title = bindparam("new_title", type_=Text)
_description = bindparam("new_description", type_=Text)
_fingerprint = bindparam("fingerprint", type_=LargeBinary)
_request = bindparam("request", type_=Uuid)

LIST = _list()
LIST_BY_STATUS = _list(col(Task.status) == _status)
PAGE = _page()
PAGE_BY_STATUS = _page(col(Task.status) == _status)
GET = _one(select(*_answer).where(_own_task).cte("task"))
CREATE = _one(
    insert(Task).values(user_id=_OWNER, title=_title, description=_description).returning(*_answer).cte("task")
)
# The same key again finds the task it made, one whose insertion is still under way included, and rewrites its key as
# it is: DO NOTHING returns no row, and a SELECT beside it may not see the task. The answer's first word says what came.
_kept = (
    postgresql.insert(Task)
    .values(
        user_id=_OWNER,
        title=_title,
        description=_description,
        idempotency_key=bindparam("key", type_=Text),
        idempotency_fingerprint=_fingerprint,
        idempotency_request=_request,
    )
    .on_conflict_do_update(
        index_elements=["user_id", "idempotency_key"],
        index_where=KEYED,
        set_={"idempotency_key": col(Task.idempotency_key)},
    )
    .returning(
        *_answer,
        case(
            (col(Task.idempotency_request) == _request, literal_column("'created '")),
            (col(Task.idempotency_fingerprint) == _fingerprint, literal_column("'replayed '")),
            else_=literal_column("'reused '"),
        ).label("outcome"),
    )
    .cte("kept")
)
_kept_task = select(*[column for column in _kept.c if column.name != "outcome"]).cte("task")
CREATE_ONCE = select(func.concat(select(_kept.c.outcome).scalar_subquery(), _json(_kept_task)))
# One text for every choice of fields: title and status are never null, so null means absent for them.
_update = (
    update(Task)
    .where(_own_task)
    .values(
        title=func.coalesce(_title, col(Task.title)),
        description=case((bindparam("has_description", type_=Boolean), _description), else_=col(Task.description)),
        status=func.coalesce(_status, col(Task.status)),
        updated_at=_later,
    )
    .returning(*_answer)
)
# A single UPDATE whatever the status was: a condition on it with a SELECT to fall back on was seen to answer
# `incomplete` beside a concurrent complete.
_complete = (
    update(Task)
    .where(_own_task)
    .values(
        status="complete",
        updated_at=case((col(Task.status) == "complete", col(Task.updated_at)), else_=_later),
    )
    .returning(*_answer)
)
_delete = delete(Task).where(_own_task).returning(col(Task.id))
UPDATE, COMPLETE, DELETE = (_one(write.cte("task")) for write in (_update, _complete, _delete))

# Only the versions the client knows are written. Where the task is another by now the answer is empty, and where there
# is none, null. Locked, so that a task deleted while the write waited is gone here too.
_is_known = _utc(col(Task.updated_at)) == any_(bindparam("versions", type_=ARRAY(Text)))


def _if_known(write: CTE) -> Select[Any]:
    still_there: Select[Any] = select(literal_column("''")).where(_own_task).with_for_update(read=True, key_share=True)
    return select(func.coalesce(_one(write).scalar_subquery(), still_there.scalar_subquery()))


UPDATE_IF, COMPLETE_IF, DELETE_IF = (
    _if_known(write.where(_is_known).cte("task")) for write in (_update, _complete, _delete)
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
