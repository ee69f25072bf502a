#!/usr/bin/env bash
# Makes the secrets of the compose stack, once; a second run changes nothing. Files are readable by the services' user.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p secrets
make_secret() { [ -s "secrets/$1" ] || (umask 022; head -c 32 /dev/urandom | base64 | tr -d '=+/\n' > "secrets/$1"); }
for name in postgres_password openmint_nats_password nats_tenant_password openmint_engine_key \
  openmint_engine_control_key openmint_engine_read_key openmint_key_pepper; do make_secret "$name"; done
printf 'postgresql://postgres:%s@postgres:5432/openmint' "$(cat secrets/postgres_password)" > secrets/openmint_postgres_dsn
printf 'NATS_PASSWORD=%s\nNATS_TENANT_PASSWORD=%s\n' "$(cat secrets/openmint_nats_password)" "$(cat secrets/nats_tenant_password)" > .env
