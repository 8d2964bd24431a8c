"""The benchmark's authentication: it does not check the token, so that only the service is measured."""

from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.requests import HTTPConnection


class BearerIsIdentity(AuthenticationBackend):
    """Take the bearer token as the user id."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Return the user in the header; None without a bearer token."""
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        return (AuthCredentials(), SimpleUser(token)) if scheme == "Bearer" and token else None
