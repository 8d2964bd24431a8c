"""The classification of errors, row by row: while connecting, and of statements."""

import re
import ssl

import asyncpg
import pytest

from todo_api.database.failures import _CONNECTING, _STATEMENT, Meaning, Rule, of_statement, while_connecting

CLOSED = "connection was closed in the middle of operation"


def postgres_error(sqlstate: str, text: str, constraint: str | None = None) -> asyncpg.PostgresError:
    """Build the driver's error for a server's message."""
    fields = {"C": sqlstate, "M": text} | ({"n": constraint} if constraint else {})
    error: asyncpg.PostgresError = asyncpg.PostgresError.new(fields)
    return error


CONNECTING = [
    ("53300", "sorry, too many clients already", Meaning.AWAY),
    ("53300", 'too many connections for role "todo"', Meaning.AWAY),
    ("XX000", "sorry, too many clients already", Meaning.AWAY),
    ("08P01", "sorry, too many clients already", Meaning.AWAY),
    ("08P01", "client connections exceeded", Meaning.AWAY),
    ("08P01", "no more connections allowed (max_client_conn)", Meaning.AWAY),
    ("XX000", "no more connections allowed", Meaning.AWAY),
    ("08P01", "query_wait_timeout", Meaning.AWAY),
    ("08P01", "server login has been failing, cached error: connect failed (server_login_retry)", Meaning.AWAY),
    ("08003", CLOSED, Meaning.AWAY),
    ("08006", "connection failure", Meaning.AWAY),
    ("57P01", "terminating connection due to administrator command", Meaning.AWAY),
    ("57P02", "terminating connection because of crash of another server process", Meaning.AWAY),
    ("57P03", "the database system is starting up", Meaning.AWAY),
    ("XX000", "the database system is in recovery mode", Meaning.AWAY),
    ("XX000", "Too many connections to this endpoint. Please try again later.", Meaning.AWAY),
    ("XX000", "remaining connection slots are reserved for roles with the SUPERUSER attribute", Meaning.AWAY),
    ("XX000", "terminating connection due to administrator command", Meaning.AWAY),
    ("08P01", "server conn crashed?", Meaning.AWAY),
    ("XX000", "Couldn't connect to compute node", Meaning.AWAY),
    ("XX000", "Failed to acquire permit to connect to the database", Meaning.AWAY),
    ("XX000", "Authentication timed out", Meaning.AWAY),
    ("XX000", "Internal error", Meaning.AWAY),
    ("XX000", "early eof", Meaning.AWAY),
    ("08P01", "server shutting down", Meaning.AWAY),
    ("08P01", "pooler is shutting down", Meaning.AWAY),
    ("08P01", "client_login_timeout (server down)", Meaning.AWAY),
    ("XX000", "Control plane request failed", Meaning.AWAY),
    ("XX000", "Control plane request failed: endpoint is disabled", Meaning.LASTING),
    ("XX000", "password authentication failed for user 'alex'", Meaning.LASTING),
    ("08P01", "unsupported startup parameter: jit", Meaning.LASTING),
    ("28P01", 'password authentication failed for user "alex"', Meaning.LASTING),
    ("3D000", 'database "todo" does not exist', Meaning.LASTING),
    ("53100", "could not write file: No space left on device", Meaning.LASTING),
]


@pytest.mark.parametrize(("sqlstate", "text", "meaning"), CONNECTING)
def test_server_error_while_connecting(sqlstate: str, text: str, meaning: Meaning) -> None:
    assert while_connecting(postgres_error(sqlstate, text)) is meaning


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (ConnectionRefusedError(111, "Connection refused"), Meaning.AWAY),
        (TimeoutError(), Meaning.AWAY),
        (FileNotFoundError(2, "No such file or directory"), Meaning.AWAY),  # for a Unix socket
        (asyncpg.TargetServerAttributeNotMatched("None of the hosts match"), Meaning.AWAY),
        (PermissionError(13, "Permission denied", "/home/todo/.postgresql"), Meaning.LASTING),
        (ssl.SSLCertVerificationError("certificate verify failed"), Meaning.LASTING),
        (ConnectionError('PostgreSQL server at "db:5432" rejected SSL upgrade'), Meaning.LASTING),
        (asyncpg.ClientConfigurationError("`sslmode` parameter must be one of …"), Meaning.LASTING),
        (ValueError("names an sslrootcert file that cannot be read"), Meaning.LASTING),
    ],
)
def test_other_error_while_connecting(error: Exception, meaning: Meaning) -> None:
    assert while_connecting(error) is meaning


STATEMENTS = [
    ("08003", "connection was closed in the middle of operation: … due to idle-session timeout", Meaning.NOT_RUN),
    ("53100", "could not extend file: No space left on device", Meaning.OWN),
    ("53200", "out of memory", Meaning.OWN),
    ("53400", "temporary file size exceeds temp_file_limit", Meaning.OWN),
    ("54000", "index row size exceeds maximum", Meaning.OWN),
    ("55P03", "canceling statement due to lock timeout", Meaning.OWN),
    ("57014", "canceling statement due to statement timeout", Meaning.OWN),
    ("22000", "invalid input for query argument $1", Meaning.OWN),
    ("42501", "permission denied for table tasks", Meaning.OWN),
    ("XX000", "cache lookup failed for relation 1", Meaning.OWN),
    ("08P01", "bind message supplies 1 parameters, but prepared statement requires 2", Meaning.OWN),
    ("25006", "cannot execute INSERT in a read-only transaction", Meaning.READ_ONLY),
    ("26000", 'prepared statement "todo_1" does not exist', Meaning.UNTRACKED),
    ("42P05", 'prepared statement "todo_1" already exists', Meaning.UNTRACKED),
    ("40001", "could not serialize access due to concurrent update", Meaning.ROLLED_BACK),
    ("40P01", "deadlock detected", Meaning.ROLLED_BACK),
    ("53300", "sorry, too many clients already", Meaning.NOT_RUN),
    ("57P03", "the database system is starting up", Meaning.NOT_RUN),
    ("08003", f"{CLOSED}: sorry, too many clients already", Meaning.NOT_RUN),
    ("08003", f"{CLOSED}: client connections exceeded", Meaning.NOT_RUN),
    ("08003", f"{CLOSED}: no more connections allowed", Meaning.NOT_RUN),
    ("08003", f"{CLOSED}: query_wait_timeout", Meaning.NOT_RUN),
    ("08003", f"{CLOSED}: server shutting down", Meaning.NOT_RUN),
    ("08003", f"{CLOSED}: server login has been failing, cached error: connect failed", Meaning.NOT_RUN),
    ("XX000", "sorry, too many clients already", Meaning.NOT_RUN),
    ("XX000", "Too many connections to this endpoint. Please try again later.", Meaning.NOT_RUN),
    ("XX000", "remaining connection slots are reserved for roles with the SUPERUSER attribute", Meaning.NOT_RUN),
    ("08P01", "query_wait_timeout", Meaning.NOT_RUN),
    ("08003", CLOSED, Meaning.UNKNOWN),
    ("08003", f"{CLOSED}: server conn crashed?", Meaning.UNKNOWN),
    ("08006", "connection to the remote node failed", Meaning.UNKNOWN),
    ("57P01", "terminating connection due to administrator command", Meaning.UNKNOWN),
    ("57P02", "terminating connection because of crash of another server process", Meaning.UNKNOWN),
    # As Citus passes them on.
    (
        "23503",
        'insert or update on table "tasks_102022" violates foreign key constraint "tasks_user_id_fkey_102022"',
        Meaning.NO_ACCOUNT,
    ),
    (
        "23503",
        'violates foreign key constraint "comments_fkey_102054"\nDETAIL:  Key (id)=(tasks_user_id_fkey_1) is here',
        Meaning.OWN,
    ),
]


@pytest.mark.parametrize(("sqlstate", "text", "meaning"), STATEMENTS)
def test_server_error_of_a_statement(sqlstate: str, text: str, meaning: Meaning) -> None:
    assert of_statement(postgres_error(sqlstate, text)) is meaning


CONSTRAINTS = [
    ("23503", "tasks_user_id_fkey", Meaning.NO_ACCOUNT),
    ("23503", "comments_task_id_fkey", Meaning.OWN),
    ("23503", None, Meaning.OWN),
    ("23505", "tasks_idempotency_key_ccnew", Meaning.ROLLED_BACK),
    ("23505", "tasks_idempotency_key_ccnew1", Meaning.ROLLED_BACK),
    ("23505", "tasks_idempotency_key_ccold", Meaning.ROLLED_BACK),
    ("23505", "tasks_idempotency_key", Meaning.ROLLED_BACK),
    ("23505", "tasks_title_key_ccnew", Meaning.OWN),
    ("23505", "tasks_title_key", Meaning.OWN),
    ("23514", "tasks_title_check", Meaning.OWN),
]


@pytest.mark.parametrize(("sqlstate", "constraint", "meaning"), CONSTRAINTS)
def test_constraint_violation_of_a_statement(sqlstate: str, constraint: str | None, meaning: Meaning) -> None:
    assert of_statement(postgres_error(sqlstate, "violates a constraint", constraint)) is meaning


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        *((rule, CONNECTING) for rule in _CONNECTING),
        *((rule, STATEMENTS) for rule in _STATEMENT if not rule.constraint),
        *((rule, CONSTRAINTS) for rule in _STATEMENT if rule.constraint),
    ],
)
def test_each_text_of_a_rule_is_tested(rule: Rule, rows: list[tuple[str, str, Meaning]]) -> None:
    tested = [
        text for sqlstate, text, meaning in rows if re.fullmatch(rule.sqlstate, sqlstate) and meaning is rule.meaning
    ]

    for text in rule.text.split("|"):
        assert any(re.search(text, other, re.IGNORECASE) for other in tested), text


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (asyncpg.InterfaceError("connection is closed"), Meaning.NOT_RUN),
        (
            asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
            Meaning.NOT_RUN,
        ),
        (asyncpg.InternalClientError("got result for unknown protocol state 3"), Meaning.UNKNOWN),
        (ConnectionResetError(104, "Connection reset by peer"), Meaning.UNKNOWN),
        (TimeoutError(), Meaning.UNKNOWN),
    ],
)
def test_other_error_of_a_statement(error: Exception, meaning: Meaning) -> None:
    assert of_statement(error) is meaning
