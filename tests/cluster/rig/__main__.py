"""`python -m tests.cluster.rig COMMAND`: build, images, up, down, status.

Exit codes: 0 done, 1 failed (with the reason), 3 this machine lacks something (with the command that helps).
"""

import argparse
import sys
import time
from pathlib import Path

from . import console
from .binaries import ensure, location
from .errors import Missing, RigError
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
    images = commands.add_parser("images", help="build the project's images as archives")
    images.add_argument("--checkout", type=Path, default=CHECKOUT)
    images.set_defaults(act=_images)
    up = commands.add_parser("up", help="start a cluster with real nodes and leave it running")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--gpus", type=int, default=8, help="pretended GPUs per node")
    up.add_argument("--no-images", action="store_true", help="do not build and import the project's images")
    up.set_defaults(act=_up)
    for name, act, about in (("down", _down, "end that cluster"), ("status", _status, "say whether it runs")):
        commands.add_parser(name, help=about).set_defaults(act=act)
    serve = commands.add_parser("serve")  # what `up` leaves behind
    serve.add_argument("--nodes", type=int, required=True)
    serve.add_argument("--gpus", type=int, required=True)
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
    from .images import build_images

    for target, archive in build_images(chosen.checkout).items():
        console.result(f"{target} {archive}")
    return 0


def _up(chosen: argparse.Namespace) -> int:
    from . import daemon

    return daemon.up(chosen.nodes, chosen.gpus, with_images=not chosen.no_images)


def _down(_: argparse.Namespace) -> int:
    from . import daemon

    return daemon.down()


def _status(_: argparse.Namespace) -> int:
    from . import daemon

    return daemon.status()


def _serve(chosen: argparse.Namespace) -> int:
    from . import daemon

    return daemon.serve(chosen.nodes, chosen.gpus)


if __name__ == "__main__":
    sys.exit(main())
