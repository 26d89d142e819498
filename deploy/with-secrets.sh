#!/bin/sh
# with-secrets.sh NAME=SECRET ... -- COMMAND ...
# Runs a command that takes its secrets from the environment alone: each NAME is what the file SECRET in SECRETS_DIR holds.
# So they stand neither in the compose file nor in what `docker inspect` shows.
set -eu
while [ "$1" != -- ]; do
    value=$(cat "${SECRETS_DIR:-/run/secrets}/${1#*=}")
    export "${1%%=*}=$value"
    shift
done
shift
exec "$@"
