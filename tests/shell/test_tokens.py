"""Tokens of a pretended cluster: its own keys, its own published documents."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from rerail_operator.shell.cluster import Unavailable
from rerail_operator.shell.tokens import (
    ISSUER_PATH,
    KEYS_PATH,
    FileTokenVerifier,
    Identity,
    ServiceAccountVerifier,
    TokenRefused,
)

from .hand_clock import HandClock

ISSUER = "https://kubernetes.default.svc.cluster.local"
RSA_KEYS = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
EC_KEY = ec.generate_private_key(ec.SECP256R1())
BOUND = {
    "namespace": "team",
    "pod": {"name": "job-0", "uid": "uid-0"},
    "serviceaccount": {"name": "default", "uid": "u"},
}


def published(*keys: tuple[str, Any]) -> dict[str, Any]:
    entries = []
    for key_id, key in keys:
        is_rsa = isinstance(key, rsa.RSAPrivateKey)
        algorithm = jwt.algorithms.RSAAlgorithm if is_rsa else jwt.algorithms.ECAlgorithm
        jwk = json.loads(algorithm.to_jwk(key.public_key()))
        entries.append({**jwk, "kid": key_id, "alg": "RS256" if is_rsa else "ES256", "use": "sig"})
    return {"keys": entries}


def token(key: Any = RSA_KEYS[0], kid: str = "first", alg: str = "RS256", **claims: Any) -> str:
    now = datetime.now(UTC)
    body = {
        "iss": ISSUER,
        "aud": ["rerail"],
        "sub": "system:serviceaccount:team:default",
        "iat": now,
        "nbf": now,
        "exp": now + timedelta(hours=1),
        "kubernetes.io": BOUND,
        **claims,
    }
    return jwt.encode({k: v for k, v in body.items() if v is not None}, key, alg, headers={"kid": kid})


class Published:
    """What the API server publishes; counts how often it is asked for keys."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self.keys = keys
        self.asked = 0
        self.away = False

    async def __call__(self, path: str) -> dict[str, Any]:
        if self.away:
            raise Unavailable("connection refused")
        if path == ISSUER_PATH:
            return {"issuer": ISSUER, "jwks_uri": "https://elsewhere/openid/v1/jwks"}
        assert path == KEYS_PATH
        self.asked += 1
        return self.keys


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def cluster() -> Published:
    return Published(published(("first", RSA_KEYS[0]), ("curve", EC_KEY)))


@pytest.fixture
def verifier(cluster: Published, clock: HandClock) -> ServiceAccountVerifier:
    return ServiceAccountVerifier(cluster, clock)


async def test_a_good_token_names_its_pod_and_costs_no_call_after_the_first(
    verifier: ServiceAccountVerifier, cluster: Published
) -> None:
    for _ in range(5):
        assert await verifier.verify(token()) == Identity("team", "job-0", "uid-0")
    assert await verifier.verify(token(EC_KEY, "curve", "ES256")) == Identity("team", "job-0", "uid-0")
    assert cluster.asked == 1


PAST = datetime.now(UTC) - timedelta(minutes=5)
REFUSED = {
    "expired": (lambda: token(exp=PAST), "^expired token$"),
    "made for the API server": (lambda: token(aud=["https://kubernetes.default.svc"]), "audience 'rerail'"),
    "without audience": (lambda: token(aud=None), '"aud"'),
    "without expiry": (lambda: token(exp=None), '"exp"'),
    "another issuer": (lambda: token(iss="https://evil.example"), "Invalid issuer"),
    "not yet valid": (lambda: token(nbf=datetime.now(UTC) + timedelta(hours=1)), "not yet valid"),
    "signed by somebody else": (lambda: token(RSA_KEYS[1]), "Signature verification failed"),
    "an unpublished key": (lambda: token(RSA_KEYS[1], "second"), "key that this cluster does not publish"),
    "signed with nothing": (lambda: token("", alg="none"), "invalid token"),
    "an HMAC under a public key's name": (lambda: token("0" * 64, alg="HS256"), "invalid token"),
    "of a service account without pod": (
        lambda: token(**{"kubernetes.io": {"namespace": "team"}}),
        "not bound",
    ),
    "claims of the wrong shape": (lambda: token(**{"kubernetes.io": ["team"]}), "not bound to a pod"),
    "no token": (lambda: "", "invalid token"),
    "rubbish": (lambda: "a.b.c", "invalid token"),
    "a novel": (lambda: "a" * 100_000, "longer than"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_token_is_refused_when_it_is(verifier: ServiceAccountVerifier, case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(TokenRefused, match=message):
        await verifier.verify(make())


async def test_a_rotated_key_is_found_but_made_up_keys_do_not_flood_the_cluster(
    verifier: ServiceAccountVerifier, cluster: Published, clock: HandClock
) -> None:
    await verifier.verify(token())
    for number in range(50):
        with pytest.raises(TokenRefused, match="does not publish"):
            await verifier.verify(token(RSA_KEYS[1], f"made-up-{number}"))
    assert cluster.asked == 1, "just asked"
    clock.advance(11)
    cluster.keys = published(("second", RSA_KEYS[1]))
    assert await verifier.verify(token(RSA_KEYS[1], "second"))
    assert cluster.asked == 2
    with pytest.raises(TokenRefused, match="does not publish"):
        await verifier.verify(token())


async def test_a_withdrawn_key_is_dropped_in_time(
    verifier: ServiceAccountVerifier, cluster: Published, clock: HandClock
) -> None:
    await verifier.verify(token())
    cluster.keys = published(("second", RSA_KEYS[1]))
    clock.advance(601)
    with pytest.raises(TokenRefused, match="does not publish"):
        await verifier.verify(token())


async def test_while_the_api_server_is_away_known_keys_go_on_and_none_says_so(
    verifier: ServiceAccountVerifier, cluster: Published, clock: HandClock
) -> None:
    cluster.away = True
    with pytest.raises(TokenRefused, match=r"cannot be verified now.*connection refused"):
        await verifier.verify(token())
    cluster.away = False
    clock.advance(1.1)
    assert await verifier.verify(token())
    cluster.away = True
    clock.advance(3600)
    assert await verifier.verify(token())


async def test_the_file_of_a_local_run_is_the_only_good_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    verifier = FileTokenVerifier(tmp_path / "token")
    assert await verifier.verify("secret") == Identity()
    with pytest.raises(TokenRefused, match="not the one in token"):
        await verifier.verify("Secret")
    (tmp_path / "token").write_text("")
    with pytest.raises(TokenRefused):
        await verifier.verify("")
