"""`python -m tests.cluster.rig COMMAND`: build, images, up, down, status.

Exit codes: 0 done, 1 failed (with the reason), 3 this machine lacks something (with the command that helps).
"""

import argparse
import json
import sys
import time
from pathlib import Path

from . import console, daemon
from .binaries import ensure, location
from .daemon import Wish
from .errors import Missing, RigError
from .images import build_images, write_archive
from .paths import CHECKOUT
from .versions import TOOLS

EXIT_FAILED = 1
EXIT_MISSING = 3


def main(arguments: list[str] | None = None) -> int:
    """Parse, act, and turn the rig's errors into exit codes."""
    chosen = _parser().parse_args(arguments)
    try:
        return int(chosen.act(chosen))
    except Missing as problem:
        console.say(f"cannot run here: {problem}")
        return EXIT_MISSING
    except RigError as problem:
        console.say(f"failed: {problem}")
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.rig", description=__doc__)
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser(
        "build", help="build the binaries that are missing from the cache (about 14 min, once)"
    )
    build.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(TOOLS)}")
    build.set_defaults(act=_build)
    images = commands.add_parser("images", help="build the project's images")
    images.add_argument("--checkout", type=Path, default=CHECKOUT)
    images.add_argument("--archives", type=Path, help="also write each as an OCI archive into this folder")
    images.set_defaults(act=_images)
    up = commands.add_parser("up", help="start a cluster with real nodes and leave it running")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--gpus", type=int, default=8, help="pretended GPUs per node")
    up.add_argument("--no-images", action="store_true", help="do not build the project's images")
    up.add_argument("--install", action="store_true", help="install Rerail with its chart's defaults")
    up.set_defaults(act=_up)
    for name, act, about in (("down", _down, "end that cluster"), ("status", _status, "say how to reach it")):
        commands.add_parser(name, help=about).set_defaults(act=act)
    serve = commands.add_parser("serve", help="what `up` leaves behind; not for people")
    serve.add_argument("wish", type=lambda text: Wish(**json.loads(text)))
    serve.set_defaults(act=_serve)
    return parser


def _build(chosen: argparse.Namespace) -> int:
    names = chosen.names or list(TOOLS)
    if unknown := sorted(set(names) - set(TOOLS)):
        raise RigError(f"no such binary: {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    missing = [name for name in names if not location(name).exists()]
    console.say(
        f"{len(names) - len(missing)} of {len(names)} binaries are in the cache; to build: {missing or 'none'}"
    )
    began = time.monotonic()
    for path in ensure(names).values():
        console.result(str(path))
    console.say(f"done in {time.monotonic() - began:.0f} s")
    return 0


def _images(chosen: argparse.Namespace) -> int:
    for target, image in build_images(chosen.checkout).items():
        where = write_archive(image, chosen.archives / f"{target}.tar") if chosen.archives else ""
        console.result(f"{image.name} {image.identity} {where}".rstrip())
    return 0


def _up(chosen: argparse.Namespace) -> int:
    return daemon.up(Wish(chosen.nodes, chosen.gpus, not chosen.no_images, chosen.install))


def _down(_: argparse.Namespace) -> int:
    return daemon.down()


def _status(_: argparse.Namespace) -> int:
    return daemon.status()


def _serve(chosen: argparse.Namespace) -> int:
    return daemon.serve(chosen.wish)


if __name__ == "__main__":
    sys.exit(main())
