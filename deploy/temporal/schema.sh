#!/bin/sh
# Makes Temporal's two databases on PostgreSQL and brings their tables up to the tool's own version.
# May run at any time, also while the server runs: what is there already stays.
set -eu
SQL_PASSWORD=$(cat /run/secrets/postgres_password)
export SQL_PASSWORD

tool() {
    database=$1
    shift
    temporal-sql-tool --plugin postgres12_pgx --endpoint postgres --port 5432 --user temporal --database "$database" "$@"
}

# The database may start after us.
until nc -z postgres 5432; do
    echo "waiting for PostgreSQL"
    sleep 2
done

for database in temporal temporal_visibility; do
    schema=${database#temporal_}
    # The table of versions is made where there is none; without the database that fails, and so it is made first.
    tool "$database" setup-schema --version 0.0 || {
        tool "$database" create-database --defaultdb temporal
        tool "$database" setup-schema --version 0.0
    }
    tool "$database" update-schema --schema-name "postgresql/v12/$schema"
done
