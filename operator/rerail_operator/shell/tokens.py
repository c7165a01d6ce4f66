"""Who is at the other end of an agent's connection: tokens in, identities out. No cryptography of our own."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jwt

from rerail_api.contract import TOKEN_AUDIENCE

from .clock import Clock
from .cluster import ClusterError

log = logging.getLogger(__name__)

ISSUER_PATH = "/.well-known/openid-configuration"
KEYS_PATH = "/openid/v1/jwks"
MAX_TOKEN_BYTES = 16 * 1024
LEEWAY_SECONDS = 10.0
# An unknown key asks for the keys again, but a flood of made-up key ids must not reach the API server.
REFRESH_SECONDS = 10.0
FIRST_REFRESH_SECONDS = 1.0  # while there are none at all
# A key taken out of the cluster's set stops being honoured within this time.
STALE_SECONDS = 600.0

Fetch = Callable[[str], Awaitable[Mapping[str, Any]]]
"""GET of an absolute path at the API server, decoded. Raises ClusterError."""


class TokenRefused(Exception):
    """The token proves nothing; the message is for the agent's log and ours."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a token proves. Empty fields are not bound by it."""

    namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""


class Verifier(Protocol):
    async def verify(self, token: str) -> Identity:
        """Raises TokenRefused."""
        ...


class FileTokenVerifier:
    """`rerail run` on loopback: one random token in a file that only this user can read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def verify(self, token: str) -> Identity:
        expected = (await asyncio.to_thread(self._path.read_text)).strip()
        if not expected or not hmac.compare_digest(expected.encode(), token.encode()):
            raise TokenRefused(f"the token is not the one in {self._path.name}")
        return Identity()


@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """The published keys that sign the cluster's service-account tokens, and when they were read."""

    issuer: str
    by_id: Mapping[str, jwt.PyJWK]
    read_at: float


class ServiceAccountVerifier:
    """Verifies projected service-account tokens here, without a call per token.

    Checks signature, issuer, audience and expiry, and that the token is bound to a pod. A deleted pod's token
    stays good until it expires: whether the pod still counts is the reconciler's knowledge, not the token's.
    """

    def __init__(self, fetch: Fetch, clock: Clock, audience: str = TOKEN_AUDIENCE) -> None:
        self._fetch = fetch
        self._clock = clock
        self._audience = audience
        self._keys: ClusterKeys | None = None
        self._asked_at = float("-inf")
        self._trouble = ""
        self._refreshing = asyncio.Lock()

    async def verify(self, token: str) -> Identity:
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenRefused(f"invalid token: longer than {MAX_TOKEN_BYTES} bytes")
        key, issuer = await self._key(_key_id(token))
        return _identity(self._claims(token, key, issuer))

    def _claims(self, token: str, key: jwt.PyJWK, issuer: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],  # the key's own, never the one that the token asks for
                audience=self._audience,
                issuer=issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise TokenRefused("expired token") from error
        except jwt.InvalidAudienceError as error:
            raise TokenRefused(f"invalid token: not made for audience {self._audience!r}") from error
        except jwt.PyJWTError as error:
            raise TokenRefused(f"invalid token: {error}") from error

    async def _key(self, key_id: str) -> tuple[jwt.PyJWK, str]:
        keys = self._keys
        age = self._clock.monotonic() - keys.read_at if keys is not None else float("inf")
        if keys is None or key_id not in keys.by_id or age > STALE_SECONDS:
            keys = await self._refresh(key_id)
        if keys is None:
            raise TokenRefused(f"tokens cannot be verified now: {self._trouble}")
        if key_id not in keys.by_id:
            raise TokenRefused("invalid token: signed with a key that this cluster does not publish")
        return keys.by_id[key_id], keys.issuer

    async def _refresh(self, key_id: str) -> ClusterKeys | None:
        """The newest keys that can be had; one fetch at a time, and not more often than allowed."""
        async with self._refreshing:
            now = self._clock.monotonic()
            if now - self._asked_at < (REFRESH_SECONDS if self._keys is not None else FIRST_REFRESH_SECONDS):
                return self._keys
            self._asked_at = now
            try:
                self._keys = await self._read_keys()
            except (ClusterError, KeyError, TypeError, jwt.PyJWTError) as error:
                self._trouble = f"the cluster's keys cannot be read: {type(error).__name__}: {error}"
                log.warning("%s (wanted key %r)", self._trouble, key_id)
        return self._keys

    async def _read_keys(self) -> ClusterKeys:
        issuer = str((await self._fetch(ISSUER_PATH))["issuer"])
        published = jwt.PyJWKSet.from_dict(dict(await self._fetch(KEYS_PATH)))
        by_id = {key.key_id: key for key in published.keys if key.key_id}
        return ClusterKeys(issuer, by_id, self._clock.monotonic())


def _key_id(token: str) -> str:
    try:
        return str(jwt.get_unverified_header(token).get("kid", ""))
    except jwt.PyJWTError as error:
        raise TokenRefused(f"invalid token: {error}") from error


def _identity(claims: Mapping[str, Any]) -> Identity:
    match claims.get("kubernetes.io"):
        case {"namespace": str(namespace), "pod": {"name": str(name), "uid": str(uid)}} if namespace and uid:
            return Identity(namespace, name, uid)
        case _:
            raise TokenRefused("invalid token: not bound to a pod")
