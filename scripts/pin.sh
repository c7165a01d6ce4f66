#!/bin/sh
# Writes requirements/*.txt: every version pinned with its hashes, without a word about where it comes from.
set -eu
cd "$(dirname "$0")/.."
uv="${UV:-.venv/bin/uv}"
pin() {
  out="$1"; shift
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-emit-find-links --no-annotate --no-header --output-file "requirements/$out.txt" "$@"
}
pin operator pyproject.toml --extra operator
pin local pyproject.toml --extra local
pin trainer pyproject.toml --extra trainer --no-emit-package rerail
pin dev pyproject.toml --extra dev --extra operator --extra local
echo "uv==0.13.9" | pin uv -
