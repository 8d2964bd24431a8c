"""Every way a request can fail, as plain exceptions.

What each looks like on the wire is decided in `error_handlers`; nothing here knows HTTP beyond a number.
"""

from typing import ClassVar


class ApiError(Exception):
    """A request that cannot be answered as asked: `status` and `message` are what its client is told."""

    status: ClassVar[int]
    message: str


class Unauthorized(ApiError):
    """Nobody is known to be asking, or somebody who has no account."""

    status = 401
    message = "Unauthorized"


class UserNotFound(ApiError):
    """The path names a user who is not the one asking."""

    status = 404
    message = "User not found"


class TaskNotFound(ApiError):
    """The owner has no such task: never made, deleted, or someone else's."""

    status = 404
    message = "Task not found"


class KeyReused(ApiError):
    """The owner made a task with this key before, by a request that asked for another one."""

    status = 409
    message = "Idempotency-Key was already used for a different request"


class TaskChanged(ApiError):
    """The task is no longer the version that its client knows."""

    status = 412
    message = "Task was changed by another request"


class BodyTooLarge(ApiError):
    """The body is longer than the service reads."""

    status = 413
    message = "Request body is too large"


class BadRequest(ApiError):
    """The request breaks a rule of the API; `message` names the rule and never quotes the request."""

    status = 400

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class DatabaseUnavailable(ApiError):
    """The database gave no answer; `__cause__` says why. The client may try again after `retry_after` seconds."""

    status = 500
    message = "Internal server error"
    retry_after: ClassVar[int] = 1


class SettingsError(Exception):
    """A setting keeps the service from starting: one sentence for the operator, free of secrets."""


class MigrationError(Exception):
    """The database cannot be migrated: one sentence for the operator."""
