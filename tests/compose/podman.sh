#!/bin/sh
# What podman-compose calls for podman, so that Debian 12's podman does as Docker does:
# - nothing of a read-only container is writable but what the compose file says (podman adds /run, /tmp and /var/tmp);
# - what a container waits for is podman-compose's affair (podman could not start one whose one-shot has ended).
for argument; do
    shift
    case "$argument" in
        --requires=*) ;;
        --read-only) set -- "$@" --read-only --read-only-tmpfs=false ;;
        *) set -- "$@" "$argument" ;;
    esac
done
exec podman "$@"
