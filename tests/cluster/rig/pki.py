"""Certificates and kubeconfigs of one cluster, made by openssl.

One authority signs everything. Every component has the identity that it has in a real cluster
(O = group, CN = user), so that RBAC decides about each of them.
"""

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import CommandFailed

_DAYS = "30"


@dataclass(frozen=True)
class Identity:
    """A signed pair of files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """The folder that holds the cluster's certificates."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The authority's own certificate, to be trusted by everybody."""
        return self.folder / "ca.crt"

    def found(self) -> None:
        """Make the authority and the key pair that signs service-account tokens (RSA, as kubeadm does)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", self.folder / "ca.key")
        _openssl(
            *("req", "-x509", "-new", "-key", self.folder / "ca.key", "-out", self.certificate),
            *("-days", _DAYS, "-subj", "/CN=rig-ca", "-sha256"),
        )
        _openssl("genrsa", "-out", self.folder / "sa.key", "2048")
        _openssl("rsa", "-in", self.folder / "sa.key", "-pubout", "-out", self.folder / "sa.pub")

    def issue(self, name: str, subject: str, names: tuple[str, ...] = ()) -> Identity:
        """Sign a pair for `subject` ("/O=group/CN=user"); `names` are `DNS:...` and `IP:...` of a server."""
        identity = Identity(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        request = self.folder / f"{name}.csr"
        _openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", identity.key)
        _openssl("req", "-new", "-key", identity.key, "-out", request, "-subj", subject)
        extensions = "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
        if names:
            extensions += f"subjectAltName={','.join(names)}\n"
        (self.folder / f"{name}.ext").write_text(extensions)
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.folder / "ca.key"),
            *("-CAcreateserial", "-out", identity.certificate, "-days", _DAYS, "-sha256"),
            *("-extfile", self.folder / f"{name}.ext"),
        )
        return identity

    def kubeconfig(self, path: Path, server: str, credential: Identity | str) -> Path:
        """Write a self-contained kubeconfig (JSON is YAML) with a certificate or a bearer token."""
        if isinstance(credential, str):
            user: dict[str, str] = {"token": credential}
        else:
            user = {
                "client-certificate-data": _encoded(credential.certificate),
                "client-key-data": _encoded(credential.key),
            }
        cluster = {"server": server, "certificate-authority-data": _encoded(self.certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "rig", "cluster": cluster}],
            "users": [{"name": "rig", "user": user}],
            "contexts": [
                {"name": "rig", "context": {"cluster": "rig", "user": "rig", "namespace": "default"}}
            ],
            "current-context": "rig",
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=1) + "\n")
        return path


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _openssl(*arguments: str | Path) -> None:
    argv = ["openssl", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandFailed(argv, done.returncode, done.stdout, done.stderr)
