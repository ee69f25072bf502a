#!/bin/bash
# initdb once, then the server; POSTGRES_PASSWORD_FILE and POSTGRES_DB as the upstream image has them.
set -euo pipefail
data=/var/lib/postgresql/18
if [ ! -s "$data/PG_VERSION" ]; then
  initdb --no-sync -E UTF8 --locale=C.UTF-8 -U postgres --auth-host=scram-sha-256 --auth-local=trust \
    --pwfile="$POSTGRES_PASSWORD_FILE" -D "$data" >/dev/null
  echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
  postgres -D "$data" -c listen_addresses= -k /tmp &
  until pg_isready -q -h /tmp -U postgres; do sleep 0.1; done
  createdb -h /tmp -U postgres "$POSTGRES_DB"
  kill -INT %1; wait %1 || true
fi
exec postgres -D "$data" -c listen_addresses='*' -k /tmp "$@"
