"""The project's images, built from its own Dockerfile without Docker or a registry.

Debian's buildah builds on a base that debootstrap makes: it stands in for `python:3-slim`, has `python`
and `pip`, and comes as the Dockerfile's build argument BASE_IMAGE. Layers are cached by content below
the rig's cache, so the heavy one (torch) is built once per version.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from . import paths, storage
from .console import say
from .errors import CommandFailed
from .ground import install, run
from .storage import StoredImage

TARGETS = ("operator", "trainer")
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_KEPT = timedelta(days=7)  # how long steps of replaced builds stay, for those who go back
_RECIPE = 1  # raise it when the steps below change what is in the base


def image_name(target: str) -> str:
    """The reference that pods use: rerail-operator:dev, rerail-trainer:dev."""
    return f"rerail-{target}:dev"


def build_images(
    checkout: Path = paths.CHECKOUT,
    targets: tuple[str, ...] = TARGETS,
    build_args: Mapping[str, str] | None = None,
) -> dict[str, StoredImage]:
    """Build these targets of CHECKOUT/Dockerfile; by target what `RealNodes.start` and `import_image` take.

    Nothing is rebuilt where nothing has changed. Raises Missing without the tools, CommandFailed
    with the builder's words."""
    install({"buildah": "buildah", "debootstrap": "debootstrap", "unshare": "util-linux"})
    with _lock():
        # Its base knows no mirror of Debian, and nothing on these nodes compiles.
        arguments = {"BASE_IMAGE": _base(), "COMPILER": "", **(build_args or {})}
        built = {target: _build(checkout, target, arguments) for target in targets}
        for old in storage.stale(_folder("storage"), datetime.now(UTC) - _KEPT):
            _forget(old)
        return built


@contextmanager
def _lock() -> Iterator[None]:
    with (_folder("") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _folder(name: str) -> Path:
    folder = paths.cache() / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _base() -> str:
    """The base image's name, made first where it is missing."""
    key = hashlib.sha256(f"{_SUITE} {_PACKAGES} {_RECIPE}".encode()).hexdigest()[:12]
    name = f"localhost/rerail-base:{key}"
    if not _succeeds("inspect", "--type", "image", name):
        say(f"making the base image from Debian {_SUITE} (once; about a minute) ...")
        began = time.monotonic()
        scratch = Path(tempfile.mkdtemp(prefix=".base-", dir=_folder("")))
        try:
            _bootstrap(scratch / "root")
            container = _buildah("from", "--pull-never", "scratch").strip()
            _buildah("add", "--quiet", container, str(scratch / "root"), "/")
            _buildah(
                "config",
                "--env",
                "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
                container,
            )
            _buildah("commit", "--quiet", "--rm", *_policy(), container, name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        say(f"made {name} in {time.monotonic() - began:.0f} s")
    return name


def _bootstrap(root: Path) -> None:
    """A minimal Debian with the names and habits of the official Python images."""
    mirrors = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Release: {_SUITE}"]
    )
    command = [
        "nice",
        "-n",
        "5",
        "debootstrap",
        "--variant=minbase",
        f"--include={_PACKAGES}",
        _SUITE,
        str(root),
    ]
    # Its mounts must not show up on the host.
    run([*_PRIVATE, *command, *mirrors.split()[:1]])
    for rubbish in (
        "var/cache/apt",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
    ):
        shutil.rmtree(root / rubbish, ignore_errors=True)
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    # debootstrap copies the names of this machine's repositories and servers; the image is to know neither.
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    for file in ("etc/resolv.conf", "etc/pip.conf"):
        (root / file).unlink(missing_ok=True)
        (root / file).touch()
    (root / "etc/hostname").write_text("image\n")


def _build(checkout: Path, target: str, arguments: Mapping[str, str]) -> StoredImage:
    began = time.monotonic()
    name = image_name(target)
    say(f"building {name} ...")
    flags = ["--layers", "--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker"]
    flags += [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
    for source, place in _mounts().items():
        flags += ["--volume", f"{source}:{place}:ro"]
    flags += [*_policy(), "--target", target, "--tag", f"localhost/{name}"]
    _buildah("bud", *flags, "--file", str(checkout / "Dockerfile"), str(checkout), nice=True)
    image = storage.read(_folder("storage"), f"localhost/{name}", name)
    size = sum(layer.size for layer in image.layers) / 2**20
    say(f"built {name} in {time.monotonic() - began:.0f} s ({size:.0f} MiB, {image.identity[:19]})")
    return image


def write_archive(image: StoredImage, path: Path) -> Path:
    """Write an image as an OCI archive, for other clusters. (Nodes of the rig need none.)"""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        image.write(stream)
    partial.rename(path)
    return path


def _forget(identity: str) -> None:
    """Removing an image takes along the steps that only it was built on, so some are gone when their turn comes."""
    try:
        _buildah("rmi", "--force", identity)
    except CommandFailed as failure:
        if "image not known" not in failure.stderr:
            raise


def _mounts() -> dict[Path, str]:
    """What a build needs to know of this machine and the image must not keep: names, authorities, pip's settings."""
    pip = _folder("") / "pip.conf"
    pip.write_text(_pip_settings())
    return {
        Path("/etc/resolv.conf"): "/etc/resolv.conf",
        Path("/etc/ssl/certs"): "/etc/ssl/certs",
        pip: "/etc/pip.conf",
    }


def _pip_settings() -> str:
    """This machine's pip settings for the build: how packages are reached, but no folder that only we can see."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    settings = {"cert": "/etc/ssl/certs/ca-certificates.crt", "disable-pip-version-check": "1"}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in {"global", "install", ":env:"} and option not in {"find-links", "cache-dir", "target"}:
            settings[option.lstrip(".")] = value.strip("'\"")
    return "[global]\n" + "".join(f"{option} = {value}\n" for option, value in sorted(settings.items()))


_PRIVATE = ["unshare", "--mount", "--propagation", "private", "--"]


def _buildah(*args: str, nice: bool = False) -> str:
    storage = [
        "--root",
        str(_folder("storage")),
        "--runroot",
        str(_folder("run")),
        "--storage-driver",
        "overlay",
    ]
    return run([*_PRIVATE, *(["nice", "-n", "5"] if nice else []), "buildah", *storage, *args])


def _succeeds(*args: str) -> bool:
    try:
        _buildah(*args)
    except CommandFailed:
        return False
    return True


def _policy() -> list[str]:
    """Nothing is pulled, so there is nothing to verify."""
    path = _folder("") / "policy.json"
    path.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    return ["--signature-policy", str(path)]
