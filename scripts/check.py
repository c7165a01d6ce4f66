"""`make check`: style, types, import contracts, generated files. Every check runs; any failure fails."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

CHECKS = {
    "ruff: rules": [str(BIN / "ruff"), "check", "--quiet", "."],
    "ruff: format": [str(BIN / "ruff"), "format", "--check", "--quiet", "."],
    "mypy: strict": [sys.executable, "-m", "mypy"],
    "import contracts": [str(BIN / "lint-imports"), "--no-cache"],
    "CRD is current": [sys.executable, "-m", "rerail_api.crd", "--check"],
    "API reference is current": [sys.executable, "-m", "rerail_api.reference", "--check"],
    "reasons page is current": [sys.executable, "-m", "rerail_operator.shell.reasons_page", "--check"],
    "failures page is current": [sys.executable, "-m", "rerail_operator.shell.failures_page", "--check"],
}


def main() -> int:
    failed = []
    for name, command in CHECKS.items():
        begun = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        good = done.returncode == 0
        word = "ok" if good else "FAILED"
        sys.stdout.write(f"check: {name:28} {word:7} {time.monotonic() - begun:5.1f} s\n")
        if not good:
            failed.append(name)
            sys.stdout.write(done.stdout + done.stderr)
    sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
