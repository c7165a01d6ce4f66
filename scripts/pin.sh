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
everything="$(mktemp)"
trap 'rm -f "$everything"' EXIT
cp requirements/dev-trainer.txt "$everything" 2>/dev/null || true
"$uv" pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
  --output-file "$everything" pyproject.toml --extra dev-trainer --extra operator --extra local
# One version of each package everywhere: files are installed on top of one another.
for extra in operator local trainer; do
  pin "$extra" pyproject.toml --extra "$extra" --no-emit-package rerail --constraint "$everything"
done
pin extras pyproject.toml --extra text --extra plot --extra objects --constraint "$everything"
pin dev pyproject.toml --extra dev --extra operator --extra local --no-emit-package rerail --constraint "$everything"
pin dev-trainer pyproject.toml --extra dev-trainer --extra operator --extra local --no-emit-package rerail \
  --constraint "$everything"
echo "uv==0.13.9" | pin uv -
