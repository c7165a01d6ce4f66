"""TLS of the coordinator's endpoint: an authority of its own, kept in a Secret of the operator's namespace.

Agents get the authority's certificate with their pod and check the server against it. Each operator process
signs a server certificate for itself when it starts; its key never leaves memory.
"""

import asyncio.sslproto
import base64
import ipaddress
import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rerail_api.contract import LABEL_MANAGED, MANAGED_BY

from .clock import Clock
from .cluster import AlreadyExists, Cluster, Kind, NotFound, Object

log = logging.getLogger(__name__)

READ_BUFFER_BYTES = 16 * 1024
# The authority is mounted into running pods and cannot be replaced under them: it has to outlive every job.
AUTHORITY_LIFE = timedelta(days=20 * 365)
SERVER_LIFE = timedelta(days=5 * 365)
CLOCK_SKEW = timedelta(hours=1)


class AuthorityUnreadable(Exception):
    """The Secret exists and does not hold an authority: a person has to look."""


@dataclass(frozen=True, slots=True)
class Authority:
    """PEM, both."""

    certificate: bytes
    key: bytes


async def load_or_create_authority(cluster: Cluster, namespace: str, name: str, clock: Clock) -> Authority:
    """The authority in Secret `namespace/name`, made if absent; of two makers the first one wins.

    Raises AuthorityUnreadable, and ClusterError when the Secret can be neither read nor created.
    """
    try:
        secret = await cluster.get(Kind.SECRET, namespace, name)
    except NotFound:
        made = make_authority(clock.now())
        try:
            secret = await cluster.create(Kind.SECRET, namespace, _secret(namespace, name, made))
        except AlreadyExists:
            secret = await cluster.get(Kind.SECRET, namespace, name)
    return _authority(secret, f"{namespace}/{name}")


def make_authority(now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rerail coordinator authority")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _pem_key(key))


def server_context(authority: Authority, name: str, now: datetime) -> ssl.SSLContext:
    """A server context for `name` (DNS name or IP address), signed by the authority; buffers cut to size."""
    shrink_tls_buffers()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # agents stay connected for days: a ticket each is memory and time for nothing
    certificate, key = _sign_server(authority, name, now)
    with _memory_file(certificate + key) as path:
        context.load_cert_chain(path)
    return context


def shrink_tls_buffers() -> None:
    """Cut asyncio's read buffer of 256 KiB per TLS connection to 16 KiB (one TLS record).

    A private class attribute: where it is gone or changed, connections work and cost more memory; the memory
    test of the coordinator then fails and says so.
    """
    size = getattr(asyncio.sslproto.SSLProtocol, "max_size", None)
    if isinstance(size, int) and size >= READ_BUFFER_BYTES:
        asyncio.sslproto.SSLProtocol.max_size = READ_BUFFER_BYTES
    else:
        log.warning("asyncio's TLS read buffer cannot be cut on this Python: 280 KiB per agent instead of 40")


def _sign_server(authority: Authority, name: str, now: datetime) -> tuple[bytes, bytes]:
    signer = serialization.load_pem_private_key(authority.key, password=None)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise AuthorityUnreadable("the authority's key is not an EC key")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rerail coordinator")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(min(now + SERVER_LIFE, issuer.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([_general_name(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )  # Python 3.13 verifies strictly and wants it
        .sign(signer, hashes.SHA256())
    )
    return _pem(certificate), _pem_key(key)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """`ssl` reads keys from paths only; this path leads to memory, no disk ever holds the key."""
    descriptor = os.memfd_create("rerail-tls")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _secret(namespace: str, name: str, authority: Authority) -> Object:
    labels = {LABEL_MANAGED: MANAGED_BY}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "type": "Opaque",
        "data": {
            "ca.crt": base64.b64encode(authority.certificate).decode(),
            "ca.key": base64.b64encode(authority.key).decode(),
        },
    }


def _authority(secret: Object, name: str) -> Authority:
    try:
        data = secret["data"]
        authority = Authority(base64.b64decode(data["ca.crt"]), base64.b64decode(data["ca.key"]))
        x509.load_pem_x509_certificate(authority.certificate)
        serialization.load_pem_private_key(authority.key, password=None)
    except (KeyError, TypeError, ValueError) as error:
        raise AuthorityUnreadable(
            f"Secret {name} holds no usable ca.crt and ca.key ({error}); delete it and a new one is made"
            " (jobs admitted before then have to be restarted)"
        ) from error
    return authority
