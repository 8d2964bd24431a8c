"""Which errors of the database say that it is away, and what became of the statement."""

import re
import ssl

import asyncpg

# SQLSTATEs of a server that is not there yet, not there any more, or full: connection, resources, operator.
_AWAY = re.compile("08(?!P01)...|53...|57P0[123]")
# Serialization failure and deadlock.
_LOST_A_RACE = ("40001", "40P01")
# Neon's proxy gives every error this one code, and PgBouncer its own errors the other: there the text decides.
_CODES_OF_MANY_ERRORS = ("XX000", "08P01")
_AWAY_TEXTS = re.compile(
    "Couldn't connect to compute node|Control plane request failed(?!: )|Too many connections|"
    "Failed to acquire permit|Authentication timed out|Internal error|remaining connection slots|"
    "no more connections allowed|query_wait_timeout|server login has been failing|server conn crashed|"
    "the database system is|terminating connection|early eof",
    re.IGNORECASE,
)
# A pooler that says so had no server to run the statement on; the driver says the last of a connection whose server has
# taken leave, but has not closed it yet.
_NEVER_RAN = re.compile(
    "query_wait_timeout|server login has been failing|no more connections allowed|cannot switch to state"
)


def is_away(error: Exception) -> bool:
    """Tell whether the database is away for the moment: neither forbidden nor misconfigured."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        lost = isinstance(error, (OSError, asyncpg.InternalClientError))
        return lost and not isinstance(error, ssl.SSLCertVerificationError)
    if sqlstate in _CODES_OF_MANY_ERRORS:
        return _AWAY_TEXTS.search(str(error)) is not None
    return _AWAY.fullmatch(sqlstate) is not None


def never_ran(error: Exception) -> bool:
    """Tell whether a statement that failed so was not even sent, or was sent to nobody who could run it."""
    return isinstance(error, asyncpg.InterfaceError) or _NEVER_RAN.search(str(error)) is not None


def lost_a_race(error: Exception) -> bool:
    """Tell whether the database rolled a statement back for the sake of another one, as stricter isolation makes it."""
    return getattr(error, "sqlstate", None) in _LOST_A_RACE
