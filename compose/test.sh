#!/usr/bin/env bash
# Builds the whole stack as containers, runs it, takes one policy through its life and prints the digest that answered.
# Needs root on a Debian machine, but no Docker engine, no systemd and no image registry. No container runtime: red.
set -euo pipefail
cd "$(dirname "$0")/.."
. compose/podman.sh

need_tools
set_up_podman
compose() { .venv/bin/podman-compose -p openmint -f compose/compose.yaml "$@"; }
container() { echo "openmint_$1_1"; }

finish() {
  local code=$?
  if [ "$code" -ne 0 ]; then
    for part in nats postgres provision gateway scheduler trainer exporter evaluator keeper engine; do
      echo "--- the end of $part's log" >&2
      podman logs --tail 15 "$(container $part)" >&2 2>&1 || true
    done
  fi
  compose down -t 2 -v >/dev/null 2>&1 || true
  podman network prune -f >/dev/null 2>&1 || true
  for table in nat filter; do # netavark leaves its chains behind
    iptables -t $table -S 2>/dev/null | grep -o 'NETAVARK[A-Z0-9_-]*' | sort -u | while read -r chain; do
      iptables -t $table -F "$chain" 2>/dev/null || true
    done
  done
  exit "$code"
}
trap finish EXIT

healthy() { # service, seconds
  local until=$((SECONDS + $2))
  while [ $SECONDS -lt $until ]; do
    podman healthcheck run "$(container "$1")" >/dev/null 2>&1 && { echo "$1 is healthy"; return; }
    sleep 1
  done
  echo "$1 was not healthy within $2 s" >&2
  return 1
}

echo "wheels for the images …"
for lock in build control engine-cpu; do # one after the other: two locks may pin a package differently
  [ -e "compose/wheelhouse/.$lock" ] && continue
  .venv/bin/pip download -q --no-deps --dest compose/wheelhouse -r "requirements/$lock.lock" 2>&1 | { grep -v '^WARNING: Loc' || true; }
  touch "compose/wheelhouse/.$lock"
done
echo "images …"
make_base_image
podman build -q -t docker.io/library/nats:2.15-alpine -f compose/ci/Dockerfile.nats . >/dev/null
podman build -q -t docker.io/library/postgres:18-bookworm -f compose/ci/Dockerfile.postgres . >/dev/null
podman build -q -t localhost/openmint-control -f compose/Dockerfile --build-arg LOCK=control --build-arg SERVICE=gateway . >/dev/null
podman build -q -t localhost/openmint-engine -f compose/Dockerfile --build-arg LOCK=engine-cpu --build-arg SERVICE=trainer . >/dev/null

bash compose/secrets.sh
set -a; . compose/.env; set +a
export OPENMINT_BASES_FOLDER=${OPENMINT_BASES_FOLDER:-$PWD/.openmint/bases}
chmod -R a+rX "$OPENMINT_BASES_FOLDER"

# podman 4.3 ignores `condition: service_healthy`, so the order is kept here.
compose down -t 1 -v >/dev/null 2>&1 || true
compose up -d nats postgres >/dev/null
healthy nats 60
healthy postgres 60
compose up -d provision >/dev/null
[ "$(podman wait "$(container provision)")" = 0 ] || { echo "provision failed" >&2; exit 1; }
echo "provisioned"
compose up -d --no-deps engine scheduler gateway trainer exporter evaluator keeper >/dev/null
for part in gateway scheduler keeper exporter evaluator trainer; do healthy $part 120; done
healthy engine 300

echo "one policy's life …"
secrets=()
for file in compose/secrets/openmint_*; do secrets+=(-v "$PWD/$file:/run/secrets/$(basename "$file"):ro"); done
podman run --rm --network openmint_private -e OPENMINT_NATS_URL=nats://nats:4222 -e OPENMINT_NATS_USER=openmint \
  "${secrets[@]}" -v "$PWD/compose/life.py:/life.py:ro" localhost/openmint-control python /life.py | tee "$lab/life.log"
grep -qE '^sha256:[0-9a-f]{64}$' "$lab/life.log" || { echo "no digest answered" >&2; exit 1; }
echo "answered from inside the containers: $(tail -1 "$lab/life.log")"
