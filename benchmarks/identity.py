"""The authentication layer of the benchmark: it believes the token, so that what is measured is the service."""

from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.requests import HTTPConnection


class BearerIsIdentity(AuthenticationBackend):
    """Take `Authorization: Bearer <user id>` at its word."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Return the user that the header names; None where it names nobody."""
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        return (AuthCredentials(), SimpleUser(token)) if scheme == "Bearer" and token else None
