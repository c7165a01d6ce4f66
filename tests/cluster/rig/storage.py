"""Images as buildah keeps them, read layer by layer.

An image of 5 GB is not written out as an archive and read again for each change of a line of code: what a
node lacks is streamed to it straight from buildah's store. The store keeps, for each layer, its files and
a record (tar-split: JSON lines) from which the layer's tar is put together again byte for byte, so digests hold.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tarfile import BLOCKSIZE, TarInfo
from typing import IO, Any

from .errors import RigError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Layer:
    """One layer: the digest and size of its tar, where its parts are, and the name of the stack up to here."""

    digest: str
    size: int
    record: Path
    files: Path
    chain: str

    def content(self) -> Iterator[bytes]:
        """The bytes of its tar."""
        with gzip.open(self.record, "rt") as lines:
            for entry in map(json.loads, lines):
                payload = entry.get("payload")
                if entry["type"] == 2:
                    yield base64.b64decode(payload or "")
                elif entry.get("size"):
                    yield from self._file(entry)

    def _file(self, entry: dict[str, Any]) -> Iterator[bytes]:
        raw = (
            base64.b64decode(entry["name_raw"]).decode(errors="surrogateescape")
            if "name_raw" in entry
            else None
        )
        with (self.files / (raw or entry["name"])).open("rb") as source:
            while chunk := source.read(_CHUNK):
                yield chunk


@dataclass(frozen=True)
class StoredImage:
    """One image; `name` is how pods call it, `identity` the digest of its configuration."""

    name: str
    identity: str
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def full_name(self) -> str:
        """The name with the registry that it has where none is said."""
        first = self.name.split("/")[0]
        if "/" in self.name and ("." in first or ":" in first or first == "localhost"):
            return self.name
        return f"docker.io/{self.name}" if "/" in self.name else f"docker.io/library/{self.name}"

    def write(self, stream: IO[bytes], present: Collection[str] = ()) -> None:
        """Write an OCI archive, without the layers whose stacks (`Layer.chain`) the reader has already."""
        manifest = self._manifest()
        described = {
            "digest": _digest(manifest),
            "size": len(manifest),
            "mediaType": _type("manifest.v1+json"),
        }
        names = {
            "io.containerd.image.name": self.full_name,
            "org.opencontainers.image.ref.name": self.name.split(":")[-1],
        }
        index = {"schemaVersion": 2, "manifests": [{**described, "annotations": names}]}
        _member(stream, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _member(stream, _blob(self.identity), self.config)
        _member(stream, _blob(_digest(manifest)), manifest)
        for layer in {layer.digest: layer for layer in self.layers if layer.chain not in present}.values():
            _stream(stream, _blob(layer.digest), layer.size, layer.content())
        _member(stream, "index.json", json.dumps(index).encode())
        stream.write(b"\0" * 2 * BLOCKSIZE)

    def _manifest(self) -> bytes:
        config = {"mediaType": _type("config.v1+json"), "digest": self.identity, "size": len(self.config)}
        kind = _type("layer.v1.tar")
        layers = [{"mediaType": kind, "digest": layer.digest, "size": layer.size} for layer in self.layers]
        whole = {
            "schemaVersion": 2,
            "mediaType": _type("manifest.v1+json"),
            "config": config,
            "layers": layers,
        }
        return json.dumps(whole).encode()


def read(store: Path, stored_name: str, name: str) -> StoredImage:
    """The image that the store calls `stored_name`. Raises RigError where there is none."""
    images = json.loads((store / "overlay-images" / "images.json").read_text())
    found = [image for image in images if stored_name in (image.get("names") or ())]
    if not found:
        raise RigError(f"buildah's store has no image {stored_name}")
    identity = f"sha256:{found[0]['id']}"
    key = base64.b64encode(identity.encode()).decode()
    config = (store / "overlay-images" / found[0]["id"] / f"={key}").read_bytes()
    return StoredImage(name, identity, config, _layers(store, found[0]["layer"]))


def stale(store: Path, before: datetime) -> list[str]:
    """The ids of images that a later build has replaced before that time, newest first.

    An image without a name is a step of a build. One whose layers an image with a name still uses is that one's
    cache and stays."""
    images = json.loads((store / "overlay-images" / "images.json").read_text())
    used: set[str] = set()
    for image in images:
        if image.get("names"):
            used.update(layer["id"] for layer in _stack(store, image["layer"]))
    old = [
        image
        for image in images
        if not image.get("names")
        and image.get("layer") not in used
        and datetime.fromisoformat(image["created"]) < before
    ]
    return [str(image["id"]) for image in sorted(old, key=lambda image: str(image["created"]), reverse=True)]


def _stack(store: Path, top: str) -> list[dict[str, Any]]:
    """The records of a layer and all below it, lowest first."""
    known = {
        layer["id"]: layer for layer in json.loads((store / "overlay-layers" / "layers.json").read_text())
    }
    order: list[dict[str, Any]] = []
    here: str | None = top
    while here:
        order.insert(0, known[here])
        here = known[here].get("parent")
    return order


def _layers(store: Path, top: str) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    for layer in _stack(store, top):
        digest = layer["diff-digest"]
        below = layers[-1].chain if layers else ""
        chain = f"sha256:{hashlib.sha256(f'{below} {digest}'.encode()).hexdigest()}" if below else digest
        record = store / "overlay-layers" / f"{layer['id']}.tar-split.gz"
        layers.append(
            Layer(digest, layer["diff-size"], record, store / "overlay" / layer["id"] / "diff", chain)
        )
    return tuple(layers)


def _type(what: str) -> str:
    return f"application/vnd.oci.image.{what}"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _member(stream: IO[bytes], name: str, content: bytes) -> None:
    _stream(stream, name, len(content), iter((content,)))


def _stream(stream: IO[bytes], name: str, size: int, content: Iterator[bytes]) -> None:
    header = TarInfo(name)
    header.size, header.mode = size, 0o644
    stream.write(header.tobuf())
    written = 0
    for chunk in content:
        stream.write(chunk)
        written += len(chunk)
    if written != size:
        raise RigError(f"{name} has {written} bytes where {size} are on record: remove the rig's image cache")
    stream.write(b"\0" * (-size % BLOCKSIZE))
