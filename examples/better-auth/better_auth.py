"""Better Auth says who is asking: its JWTs, checked against the public keys it publishes."""

import asyncio
import logging
import os
from time import monotonic

import httpx2
import jwt
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser, SimpleUser
from starlette.requests import HTTPConnection

logger = logging.getLogger(__name__)

# All in seconds.
LEEWAY = 10  # how far apart Better Auth's clock and this one may be
LIFESPAN = 300  # when the keys are fetched again, so that one withdrawn is not trusted for ever
COOL_DOWN = 10  # how long nothing is fetched after a fetch without a new key: anyone can invent a key id
TIMEOUT = 5  # of a whole fetch, however slowly the bytes come
MAX_BYTES = 1 << 20  # of the published keys


class UnknownKey(jwt.InvalidTokenError):
    """Better Auth publishes no key of the id that the token names."""


class BetterAuth(AuthenticationBackend):
    """Verify what Better Auth's `jwt` plugin signs at `BETTER_AUTH_URL`.

    The keys are at `BETTER_AUTH_JWKS_URL`, by default `/jwks` under the path of `BETTER_AUTH_URL`, or under `/api/auth`
    where that has none.
    """

    def __init__(self) -> None:
        url = _http_url(os.environ["BETTER_AUTH_URL"])
        # Without the path, as Better Auth signs it.
        self._origin = f"{url.scheme}://{url.netloc.decode()}"
        keys_url = f"{self._origin}{url.path.rstrip('/') or '/api/auth'}/jwks"
        self._keys_url = _http_url(os.environ.get("BETTER_AUTH_JWKS_URL") or keys_url)
        self._client = httpx2.AsyncClient(
            # A size is only known beforehand of what is not compressed.
            headers={"User-Agent": "todo-api", "Accept": "application/json", "Accept-Encoding": "identity"},
            follow_redirects=True,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )
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
        token = token.strip(" ")
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
            raise RuntimeError(f"No keys of Better Auth have been fetched from {self._keys_url} yet")
        if key_id not in self._keys:
            raise UnknownKey
        return self._keys[key_id]

    async def _fetch(self) -> None:
        known = set(self._keys)
        try:
            async with asyncio.timeout(TIMEOUT):
                self._keys = await self._published()
            self._stale_at = monotonic() + LIFESPAN
        except Exception:  # whatever it is, the keys there are go on being used
            logger.warning("Better Auth's keys cannot be fetched from %s", self._keys_url, exc_info=True)
        self._closed_until = 0.0 if self._keys.keys() - known else monotonic() + COOL_DOWN

    async def _published(self) -> dict[str | None, jwt.PyJWK]:
        body = b""
        async with self._client.stream("GET", self._keys_url) as answer:
            answer.raise_for_status()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError(f"the answer is over {MAX_BYTES} bytes")
        keys = jwt.PyJWKSet.from_json(body.decode()).keys
        signing: dict[str | None, jwt.PyJWK] = {
            key.key_id: key for key in keys if key.key_id and key.public_key_use in (None, "sig")
        }
        if not signing:
            raise ValueError("none of the keys is for signatures")
        return signing


def _http_url(text: str) -> httpx2.URL:
    url = httpx2.URL(text)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{text} is no URL of http or https")
    return url
