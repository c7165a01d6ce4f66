"""Who is at the other end of an agent's connection: tokens in, identities out. No cryptography of our own."""

import asyncio
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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
