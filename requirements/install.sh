#!/usr/bin/env bash
# Makes .venv from requirements/local.lock and installs openmint into it; does nothing when both are up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
lock=requirements/local.lock
stamp=.venv/.openmint-installed
want=$(sha256sum "$lock" pyproject.toml | sha256sum | cut -c1-64)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else 1)' || {
  echo "openmint's CPU set is locked for Python 3.11; set PYTHON=python3.11 (this is $("$python" -V))" >&2; exit 1; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
torch=$(grep -oE '^torch==[^ ]+' "$lock")
.venv/bin/pip download -q --no-deps --dest .venv/torch-check "$torch" >/dev/null 2>&1 || {
  echo "no wheel of $torch was found: set PIP_EXTRA_INDEX_URL (or PIP_FIND_LINKS) to a place that has PyTorch's CPU wheels" >&2
  exit 1; }
rm -rf .venv/torch-check
echo "installing the locked set into .venv (minutes, once) …" >&2
.venv/bin/pip install -q --no-deps --require-hashes -r "$lock" 2>&1 | grep -vE '^WARNING: Location|^$|notice' >&2 || true
.venv/bin/pip install -q --no-deps --no-build-isolation --editable . 2>&1 | grep -vE '^WARNING: Location|^$|notice' >&2 || true
.venv/bin/python -c 'import openmint.events, asyncpg, torch' 2>/dev/null >/dev/null || { echo "the installation is not complete: see the lines above" >&2; exit 1; }
echo "$want" > "$stamp"
