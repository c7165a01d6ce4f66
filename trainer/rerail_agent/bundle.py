"""The agent as one file: a zipapp whose bytes depend on the sources alone."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import rerail_api

SHEBANG = b"#!/usr/bin/env python3\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)
# what builds the file has no business inside it
_LEFT_OUT = {"bundle.py"}
_CONTRACT = ("__init__.py", "contract.py")


def build() -> bytes:
    """The zipapp: agent, contract, and nothing else. Same sources and Python, same bytes."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for name, source in sorted(_members().items()):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            zipped.writestr(info, source.read_bytes())
    return SHEBANG + archive.getvalue()


def _members() -> dict[str, Path]:
    agent = Path(__file__).parent
    contract = Path(rerail_api.__file__).parent
    members = {f"rerail_agent/{p.name}": p for p in agent.glob("*.py") if p.name not in _LEFT_OUT}
    members.update({f"rerail_api/{name}": contract / name for name in _CONTRACT})
    # the same file twice: as the entry of the archive it must not import a package before it knows the Python
    members["__main__.py"] = agent / "__main__.py"
    return members


def main(argv: list[str]) -> int:
    """Write the zipapp to the file named on the command line."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m rerail_agent.bundle OUT\n")
        return 64
    Path(argv[0]).write_bytes(build())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
