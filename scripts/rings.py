"""Sets up `.venv` and runs the rings that this machine can run: `python3 scripts/rings.py [RING ...]`.

Standard library only. Says loudly which rings cannot run here and why; exits non-zero on any failure. With
RERAIL_FORBID_SKIPS=1 a ring that cannot run, or a test that skips for anything but a missing GPU, is one.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))

import demo  # noqa: E402 - the same checks for the same machine

VENV = os.environ.get("RERAIL_VENV") or os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
FORBID_SKIPS = "RERAIL_FORBID_SKIPS"
ELSEWHERE = "not controlplane and not realnodes and not trainer and not local"


def needs_nothing():
    return ""


def needs_go():
    return "" if shutil.which("go") else "no Go here: install Go 1.26 or newer (https://go.dev/doc/install)"


def needs_root_and_go():
    if sys.platform != "linux":
        return "real nodes need Linux"
    if os.geteuid() != 0:
        return "not root: containers need it; run as root, or: sudo make test"
    return needs_go()


def pytest(*words):
    return [PYTHON, "-m", "pytest", "-q", *words]


# Before pytest and its time limits: the first time, Kubernetes is compiled and torch goes into an image.
RIG_BUILD = [PYTHON, "-m", "tests.cluster.rig", "build"]
RIG_IMAGES = [PYTHON, "-m", "tests.cluster.rig", "images"]

RINGS = {
    # name: (what it is, the commands, what keeps it from running here)
    "check": (
        "style, types, import contracts, generated files",
        [[PYTHON, "scripts/check.py"]],
        needs_nothing,
    ),
    "fast": (
        "core, contract on the in-memory cluster, chaos in memory, repository",
        [pytest("-m", ELSEWHERE, "tests/core", "tests/contract", "tests/chaos", "tests/repo", "tests/api")],
        needs_nothing,
    ),
    "shell": (
        "shell and agent on sockets and processes",
        [pytest("-m", ELSEWHERE, "tests/shell", "tests/agent")],
        needs_nothing,
    ),
    "trainer": (
        "trainer on CPU, 1 to 4 processes",
        [pytest("-m", "trainer and not local and not controlplane and not realnodes", "tests")],
        needs_nothing,
    ),
    "local": (
        "`rerail run` with real processes",
        [pytest("-m", "local", "tests/local", "tests/chaos")],
        needs_nothing,
    ),
    "controlplane": (
        "a real control plane, kwok nodes, the operator under its chart's role",
        [RIG_BUILD, pytest("-m", "controlplane and not realnodes", "tests")],
        needs_go,
    ),
    "realnodes": (
        "real nodes, images and trainer",
        [RIG_BUILD, RIG_IMAGES, pytest("-m", "realnodes", "tests")],
        needs_root_and_go,
    ),
}
FAST = ["fast"]


def say(text):
    sys.stdout.write(f"rings: {text}\n")
    sys.stdout.flush()


def main(arguments):
    parser = argparse.ArgumentParser(prog="rings")
    parser.add_argument(
        "rings", metavar="RING", nargs="*", choices=[*RINGS, []], help="all when none is named"
    )
    parser.add_argument("--setup-only", action="store_true")
    parser.add_argument("--without-torch", action="store_true", help="for rings that do not need it")
    given = parser.parse_args(arguments)
    try:
        demo.require_python()
        set_up(with_torch=not given.without_torch)
    except demo.CannotSetUp as problem:
        sys.stderr.write(f"rings: {problem}\n")
        return 1
    if given.setup_only:
        return 0
    return run(given.rings or list(RINGS))


def set_up(with_torch):
    """`.venv` as the pinned files say; a stamp makes the second time free."""
    files = ["dev-trainer" if with_torch else "dev"]
    paths = [os.path.join(ROOT, "requirements", name + ".txt") for name in ["uv", *files]]
    wanted = digest([os.path.join(ROOT, "pyproject.toml"), *paths])
    stamp = os.path.join(VENV, "rerail-rings.stamp")
    if os.path.exists(PYTHON) and wanted in demo.read(stamp).split():
        return
    if not os.path.exists(PYTHON):
        demo.require_venv()
        demo.require_disk(demo.DISK_GB_WITH_TORCH if with_torch else demo.DISK_GB_WITHOUT)
        say(f"making {os.path.relpath(VENV, ROOT)}")
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    subprocess.run([*pip, "-r", paths[0]], check=True, cwd=ROOT)
    if with_torch:
        say("installing pinned packages and torch (about 5.3 GB on disk with CUDA; cached by uv)")
    uv = [os.path.join(VENV, "bin", "uv"), "pip", "install", "--quiet", "--python", PYTHON]
    for path in paths[1:]:
        subprocess.run([*uv, "--require-hashes", "-r", path], check=True, cwd=ROOT)
    subprocess.run([*uv, "--no-deps", "-e", ROOT], check=True, cwd=ROOT)
    with open(stamp, "a") as file:
        file.write(wanted + "\n")


def digest(paths):
    total = hashlib.sha256(sys.version.encode())
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.sha256(file.read()).digest())
    return total.hexdigest()


def run(names):
    forbidden = os.environ.get(FORBID_SKIPS) == "1"
    outcomes = []
    for name in names:
        what, commands, cannot = RINGS[name]
        why = cannot()
        if why:
            say(f"!!! ring {name} CANNOT RUN on this machine: {why}")
            outcomes.append((name, "CANNOT RUN: " + why, not forbidden, 0.0))
            continue
        say(f"--- ring {name}: {what}")
        begun = time.monotonic()
        passed = all(subprocess.run(command, cwd=ROOT).returncode == 0 for command in commands)
        outcomes.append((name, "passed" if passed else "FAILED", passed, time.monotonic() - begun))
    say("")
    for name, text, _, seconds in outcomes:
        say(f"{name:14} {seconds:8.1f} s  {text}")
    return 0 if all(good for _, _, good, _ in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
