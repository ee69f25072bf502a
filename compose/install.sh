#!/usr/bin/env bash
# Installs one locked set into /opt/venv; used while an image is built. Argument: build, control or engine-cpu.
set -euo pipefail
lock="requirements/$1.lock"
python3 -m venv /opt/venv
source=()
if compgen -G "/wheelhouse/*.whl" >/dev/null; then source=(--no-index --find-links /wheelhouse); fi
/opt/venv/bin/pip install --quiet --no-cache-dir --no-deps --require-hashes "${source[@]}" --requirement "$lock"
