#!/bin/bash
# What a first start of the official image does, as far as it is used here: a cluster in PGDATA, an account with a
# password, a database, the scripts of /docker-entrypoint-initdb.d; afterwards the server itself.
set -euo pipefail

[ "${1:-postgres}" = postgres ] || exec "$@"
if [ "$(id -u)" = 0 ]; then
    chown postgres:postgres "$PGDATA"
    exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
fi

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
export PGPASSWORD=${POSTGRES_PASSWORD:-$(cat "${POSTGRES_PASSWORD_FILE:?give POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE}")}

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    eval "initdb --username=\"\$user\" --pwfile=<(printf '%s\n' \"\$PGPASSWORD\") ${POSTGRES_INITDB_ARGS:-}"
    printf '\nhost all all all %s\n' "${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >> "$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
    pg_ctl --wait --options "-c listen_addresses=''" start
    [ "$database" = postgres ] || createdb --username "$user" "$database"
    for script in /docker-entrypoint-initdb.d/*; do
        case "$script" in
            *.sh) bash "$script" ;;
            *.sql) psql --set ON_ERROR_STOP=1 --username "$user" --dbname "$database" --file "$script" ;;
        esac
    done
    pg_ctl --wait --mode fast stop
fi
unset PGPASSWORD
exec "$@"
