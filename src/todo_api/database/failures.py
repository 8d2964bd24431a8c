"""Classifies the driver's errors, while connecting and of statements."""

import re
import ssl
from enum import Enum, auto
from typing import NamedTuple

import asyncpg


class Meaning(Enum):
    """What an error means for the request, its statement and its connection."""

    # While connecting:
    AWAY = auto()  # no connection can be opened at the moment: wait and retry
    LASTING = auto()  # waiting does not help: a wrong password, a spent quota, a missing file
    # Of a statement:
    OWN = auto()  # an error of the statement itself: not applied, the connection is usable, and a retry would not help
    NO_ACCOUNT = auto()  # the owner of a new task has no account
    ROLLED_BACK = auto()  # because of a concurrent statement: retry
    NOT_RUN = auto()  # no server received it: retry
    READ_ONLY = auto()  # not run, because the server is no longer a primary
    UNTRACKED = auto()  # not run, because the pooler does not track prepared statements
    UNKNOWN = auto()  # it may have been applied


class Rule(NamedTuple):
    """A row of the tables below: regular expressions for SQLSTATE, text and constraint. An empty one matches any."""

    sqlstate: str
    meaning: Meaning
    text: str = ""
    constraint: str = ""


# Errors of a server or pooler that has too many connections or is being stopped. Poolers use other SQLSTATEs for them,
# and may send them instead of running a statement.
_REFUSED = (
    "sorry, too many clients|too many connections|remaining connection slots|no more connections allowed|"
    "client connections exceeded|query_wait_timeout|server login has been failing|server shutting down"
)
# Neon's proxy uses XX000 for every error, and PgBouncer 08P01 for its own, so the text decides. Unknown texts count as
# lasting, so that a wrong password is reported at once, not after ten seconds.
_AWAY_TEXTS = (
    f"{_REFUSED}|Couldn't connect to compute node|Control plane request failed(?!: )|Failed to acquire permit|"
    "Authentication timed out|Internal error|server conn crashed|pooler is shutting down|client_login_timeout|"
    "the database system is|terminating connection|early eof"
)
_CONNECTING = (
    Rule("08(?!P01)...", Meaning.AWAY),  # the connection broke or was refused
    Rule("53300", Meaning.AWAY),  # too many connections
    Rule("57P0[123]", Meaning.AWAY),  # shutting down, crashed, starting up
    Rule("XX000|08P01", Meaning.AWAY, text=_AWAY_TEXTS),
)
_STATEMENT = (
    Rule("53300|57P03", Meaning.NOT_RUN),  # from a pooler that could not log in
    Rule("08...|XX000", Meaning.NOT_RUN, text=f"{_REFUSED}|idle-session timeout"),
    Rule("08(?!P01)...|57P0[12]", Meaning.UNKNOWN),  # the connection broke, here or behind a router
    Rule("25006", Meaning.READ_ONLY),
    Rule("26000|42P05", Meaning.UNTRACKED),
    Rule("40001|40P01", Meaning.ROLLED_BACK),  # serialization failure, deadlock
    # During REINDEX CONCURRENTLY there are two indexes, which exchange their names. ON CONFLICT uses only one of them.
    Rule("23505", Meaning.ROLLED_BACK, constraint=r"tasks_idempotency_key(_cc(new|old)\d*)?"),
    Rule("23503", Meaning.NO_ACCOUNT, constraint="tasks_user_id_fkey"),
    # Citus passes on only the text of a worker's error. Its first line has the constraint, with the shard's number.
    Rule("23503", Meaning.NO_ACCOUNT, text=r"^[^\n]*\btasks_user_id_fkey_\d+\b"),
)


def while_connecting(error: Exception) -> Meaning:
    """Classify an error while connecting."""
    if isinstance(error, asyncpg.PostgresError):
        return _look_up(error, _CONNECTING, Meaning.LASTING)
    if isinstance(error, asyncpg.InternalClientError):  # for example: no host meets target_session_attrs
        return Meaning.AWAY
    lasting = (
        not isinstance(error, OSError)
        or isinstance(error, ssl.SSLCertVerificationError)
        or error.filename
        or "rejected SSL upgrade" in str(error)
    )
    return Meaning.LASTING if lasting else Meaning.AWAY


def of_statement(error: Exception) -> Meaning:
    """Classify an error of a statement."""
    if isinstance(error, asyncpg.PostgresError):
        return _look_up(error, _STATEMENT, Meaning.OWN)
    if isinstance(error, asyncpg.InterfaceError):  # the connection was already closed
        return Meaning.NOT_RUN
    if isinstance(error, asyncpg.InternalClientError):
        # The server had sent its termination notice on the idle connection, and not closed it yet.
        return Meaning.NOT_RUN if "cannot switch to state" in str(error) else Meaning.UNKNOWN
    return Meaning.UNKNOWN


def _look_up(error: asyncpg.PostgresError, rules: tuple[Rule, ...], otherwise: Meaning) -> Meaning:
    for rule in rules:
        if (
            re.fullmatch(rule.sqlstate, error.sqlstate or "")
            and re.search(rule.text, str(error), re.IGNORECASE)
            and (not rule.constraint or re.fullmatch(rule.constraint, error.constraint_name or ""))
        ):
            return rule.meaning
    return otherwise
