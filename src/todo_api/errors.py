"""The exceptions for every way in which a request can fail.

`error_handlers` turns them into responses; here they only have a status code and a message.
"""

from typing import ClassVar


class ApiError(Exception):
    """A request that fails; the response has this `status` and `message`."""

    status: ClassVar[int]
    message: str


class Unauthorized(ApiError):
    """The request is not authenticated, or its user has no account."""

    status = 401
    message = "Unauthorized"


class UserNotFound(ApiError):
    """The user in the path is not the authenticated user."""

    status = 404
    message = "User not found"


class TaskNotFound(ApiError):
    """The owner has no such task: it never existed, was deleted, or belongs to another user."""

    status = 404
    message = "Task not found"


class KeyReused(ApiError):
    """The owner already created a task with this key, and with other fields."""

    status = 409
    message = "Idempotency-Key was already used for a different request"


class TaskChanged(ApiError):
    """The task's version does not meet `If-Match` or `If-None-Match`."""

    status = 412
    message = "Task was changed by another request"


class BodyTooLarge(ApiError):
    """The body is longer than the limit."""

    status = 413
    message = "Request body is too large"


class BadRequest(ApiError):
    """The request breaks a rule of the API; `message` names the rule and never quotes the request."""

    status = 400

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class DatabaseUnavailable(ApiError):
    """The database did not answer; `__cause__` says why. The client may retry after `retry_after` seconds."""

    status = 500
    message = "Internal server error"
    retry_after: ClassVar[int] = 1


class Busy(ApiError):
    """There is more to do than can be done in time, and nothing was done of this request."""

    status = 503
    message = "Service is busy"
    retry_after: ClassVar[int] = 1


class SettingsError(Exception):
    """A setting is invalid, so the service cannot start. The message is one line for the operator, without secrets."""


class MigrationError(Exception):
    """The database cannot be migrated. The message is one line for the operator."""
