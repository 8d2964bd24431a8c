"""What an error means, which depends on when it came: while connecting, or from a statement."""

import re
import ssl
from enum import Enum, auto
from typing import NamedTuple

import asyncpg


class Meaning(Enum):
    """What an error says about the database, and about the statement."""

    # While connecting:
    AWAY = auto()  # no connection at the moment: wait for one
    LASTING = auto()  # waiting does not help: a wrong password, a spent quota, a missing file
    # Of a statement:
    OWN = auto()  # its own trouble: nothing was applied, the connection is well, and a second try would not help
    NO_ACCOUNT = auto()  # the owner of a new task has no account
    ROLLED_BACK = auto()  # for the sake of another statement: run it again
    NOT_RUN = auto()  # there was no server to run it on: run it again
    READ_ONLY = auto()  # the connection leads to a server that is no primary any more: not run
    UNTRACKED = auto()  # the pooler in between does not know which statements are prepared: not run
    UNKNOWN = auto()  # it may have been applied


class Rule(NamedTuple):
    """A line of the tables below: patterns of SQLSTATE, text and constraint. An empty one fits everything."""

    sqlstate: str
    meaning: Meaning
    text: str = ""
    constraint: str = ""


# A server or pooler with too many connections. Poolers say so in their own codes, and may say it instead of running a
# statement.
_FULL = (
    "sorry, too many clients|too many connections|remaining connection slots|no more connections allowed|"
    "client connections exceeded"
)
# Neon's proxy gives every error the code XX000, and PgBouncer its own errors 08P01: there the text decides. Texts not
# known to pass are taken as lasting: a wrong password is an error at once, not after ten seconds.
_AWAY_TEXTS = (
    f"{_FULL}|Couldn't connect to compute node|Control plane request failed(?!: )|Failed to acquire permit|"
    "Authentication timed out|Internal error|query_wait_timeout|server login has been failing|server conn crashed|"
    "the database system is|terminating connection|early eof"
)
_CONNECTING = (
    Rule("08(?!P01)...", Meaning.AWAY),  # the connection broke or was refused
    Rule("53300", Meaning.AWAY),  # too many connections
    Rule("57P0[123]", Meaning.AWAY),  # shutting down, crashed, starting up
    Rule("XX000|08P01", Meaning.AWAY, text=_AWAY_TEXTS),
)
_STATEMENT = (
    Rule("53300|57P03", Meaning.NOT_RUN),  # a pooler's attempt to log in
    Rule("08...|XX000", Meaning.NOT_RUN, text=f"{_FULL}|query_wait_timeout|server login has been failing"),
    Rule("08(?!P01)...|57P0[12]", Meaning.UNKNOWN),  # it broke in between, here or behind a router
    Rule("25006", Meaning.READ_ONLY),
    Rule("26000|42P05", Meaning.UNTRACKED),
    Rule("40001|40P01", Meaning.ROLLED_BACK),  # serialization failure, deadlock
    # The copy of a unique index while REINDEX CONCURRENTLY builds it: ON CONFLICT does not know it.
    Rule("23505", Meaning.ROLLED_BACK, constraint=r".*_cc(new|old)\d*"),
    Rule("23503", Meaning.NO_ACCOUNT, constraint=r"tasks_user_id_fkey(_\d+)?"),  # Citus adds the shard's number
)


def while_connecting(error: Exception) -> Meaning:
    """Tell what an error while connecting means."""
    if isinstance(error, asyncpg.PostgresError):
        return _look_up(error, _CONNECTING, Meaning.LASTING)
    if isinstance(error, asyncpg.InternalClientError):  # no host meets target_session_attrs, for one
        return Meaning.AWAY
    lasting = not isinstance(error, OSError) or isinstance(error, ssl.SSLCertVerificationError) or error.filename
    return Meaning.LASTING if lasting else Meaning.AWAY


def of_statement(error: Exception) -> Meaning:
    """Tell what an error of a statement means for it."""
    if isinstance(error, asyncpg.PostgresError):
        return _look_up(error, _STATEMENT, Meaning.OWN)
    if isinstance(error, asyncpg.InterfaceError):  # the connection had closed
        return Meaning.NOT_RUN
    if isinstance(error, asyncpg.InternalClientError):
        # The server had said goodbye on the idle connection, and had not closed it yet.
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
