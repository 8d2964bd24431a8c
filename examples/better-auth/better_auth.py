"""Better Auth says who is asking: its JWTs, checked against the public keys it publishes."""

import asyncio
import logging
import os
from time import monotonic

import jwt
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser, SimpleUser
from starlette.requests import HTTPConnection

logger = logging.getLogger(__name__)

# All in seconds.
LEEWAY = 10  # how far apart Better Auth's clock and this one may be
LIFESPAN = 300  # when the keys are fetched again, so that one withdrawn is not trusted for ever
COOL_DOWN = 10  # how long nothing is fetched after a fetch without a new key: anyone can invent a key id


class BetterAuth(AuthenticationBackend):
    """Verify what Better Auth's `jwt` plugin signs as the origin `BETTER_AUTH_URL`."""

    def __init__(self) -> None:
        self._origin = os.environ["BETTER_AUTH_URL"].rstrip("/")
        self._client = jwt.PyJWKClient(f"{self._origin}/api/auth/jwks", cache_jwk_set=False, timeout=5)
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._stale_at = self._closed_until = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Return the user whose token this is; None without a token.

        Raises `AuthenticationError` where the token proves nothing, and `RuntimeError` while there are no keys to tell.
        """
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            claims = jwt.decode(
                token,
                await self._key(jwt.get_unverified_header(token).get("kid")),
                algorithms=["EdDSA"],
                issuer=self._origin,
                audience=self._origin,
                leeway=LEEWAY,
                options={"require": ["iss", "aud", "exp", "sub"]},
            )
        except jwt.InvalidTokenError as error:
            raise AuthenticationError(str(error)) from error
        return AuthCredentials(), SimpleUser(claims["sub"])

    async def _key(self, key_id: str | None) -> jwt.PyJWK:
        now = monotonic()
        is_wanted = key_id not in self._keys or now >= self._stale_at
        if is_wanted and now >= self._closed_until and (self._fetching is None or self._fetching.done()):
            self._fetching = asyncio.create_task(self._fetch())
        if key_id not in self._keys and self._fetching is not None:
            await asyncio.shield(self._fetching)  # one fetch for all who wait, whoever of them goes away
        if not self._keys:
            raise RuntimeError("Better Auth's keys have not been fetched yet")
        if key_id not in self._keys:
            raise AuthenticationError("Better Auth has no such key")
        return self._keys[key_id]

    async def _fetch(self) -> None:
        known = set(self._keys)
        try:
            keys = await asyncio.to_thread(self._client.get_signing_keys)  # in a thread, because it blocks
            self._keys = {key.key_id: key for key in keys}
            self._stale_at = monotonic() + LIFESPAN
        except Exception:  # whatever it is, the keys there are go on being used
            logger.warning("Better Auth's keys cannot be fetched", exc_info=True)
        self._closed_until = 0.0 if self._keys.keys() - known else monotonic() + COOL_DOWN
