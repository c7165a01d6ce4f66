"""A real S3 server for the tests: versitygw over a folder, on loopback, built once from its Go module."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.rig.binaries import ensure

from .gang import free_port

BUCKET = "checkpoints"
_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True)
class S3Server:
    """A running server: the environment that points a client at it, and the folder behind its bucket."""

    environment: dict[str, str]
    folder: Path

    def url(self, path: str) -> str:
        return f"s3://{BUCKET}/{path}"


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Starts the server, waits until it answers, and ends it."""
    binary = ensure(["versitygw"])["versitygw"]
    for name in ("root", "sidecar"):
        (folder / name).mkdir(parents=True)
    (folder / "root" / BUCKET).mkdir()
    port, key, secret = free_port(), "rerail", "for-this-test-only"
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [
                str(binary),
                "--port",
                f"127.0.0.1:{port}",
                "posix",
                "--sidecar",
                str(folder / "sidecar"),
                str(folder / "root"),
            ],
            env={**os.environ, "ROOT_ACCESS_KEY": key, "ROOT_SECRET_KEY": secret},
            stdout=log,
            stderr=log,
        )
    try:
        _await(port, process, folder / "log")
        environment = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield S3Server(environment, folder / "root" / BUCKET)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers: only not to strangers
        except (TimeoutError, OSError):
            time.sleep(0.05)
