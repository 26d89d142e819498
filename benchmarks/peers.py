"""What one would do by hand instead: `rclone`, a checksum program, `tar`.

A peer run gives seconds by name; several that share a copy are timed in one run.
"""

import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.rclone import PARTS_16_MIB, CommandFailed, Rclone, run
from benchmarks.site import settle

Times = dict[str, float]

COPY_SHA256SUM = "rclone copy, sync, sha256sum"
COPY_OPENSSL = "rclone copy, sync, openssl dgst"
TAR_OPENSSL = "tar | openssl dgst, from the local disk"
SMALL_SHA256SUM = "rclone copy (16 transfers), sha256sum"
SMALL_OPENSSL = "rclone copy (16 transfers), openssl dgst"
UPLOAD = "rclone copy disk to S3, default parts"
UPLOAD_16_MIB = "rclone copy disk to S3, 16 MiB parts"
UPLOAD_ONE_16_MIB = "rclone copy disk to S3, one file, 16 MiB parts"

_SHA256SUM = 'cd "$0" && find . -type f -print0 | xargs -0 sha256sum'
_OPENSSL = 'cd "$0" && find . -type f -print0 | xargs -0 openssl dgst -sha256'
_TAR = 'tar -cf - -C "$0" . | openssl dgst -sha256'

TARGET_BUCKET = "peer"


async def fetch_and_digest(rclone: Rclone, source: str, target: Path) -> Times:
    """Large files: copy out of MinIO, make sure that they are on disk, digest them from there."""
    copied = await _fetch(rclone, source, target)
    synced = await _seconds(lambda: _sync())
    times = {
        COPY_SHA256SUM: copied + synced + await _shell(_SHA256SUM, target),
        COPY_OPENSSL: copied + synced + await _shell(_OPENSSL, target),
        TAR_OPENSSL: await _shell(_TAR, target),
    }
    shutil.rmtree(target)
    return times


async def fetch_and_digest_small(rclone: Rclone, source: str, target: Path) -> Times:
    """Small files: with 16 transfers, and without the `sync`, which is dear with so many."""
    copied = await _fetch(rclone, source, target, "--transfers", "16")
    times = {
        SMALL_SHA256SUM: copied + await _shell(_SHA256SUM, target),
        SMALL_OPENSSL: copied + await _shell(_OPENSSL, target),
    }
    shutil.rmtree(target)
    return times


async def upload(rclone: Rclone, files: Path, one_file: Path) -> Times:
    """The same bytes from the local disk into MinIO, as several files and as one."""
    return {
        UPLOAD: await _upload(rclone, files),
        UPLOAD_16_MIB: await _upload(rclone, files, *PARTS_16_MIB),
        UPLOAD_ONE_16_MIB: await _upload(rclone, one_file, *PARTS_16_MIB),
    }


async def _fetch(rclone: Rclone, source: str, target: Path, *options: str) -> float:
    shutil.rmtree(target, ignore_errors=True)
    await settle()
    return await _seconds(lambda: rclone.copy(source, target, *options))


async def _upload(rclone: Rclone, source: Path, *options: str) -> float:
    await rclone.empty(rclone.at(TARGET_BUCKET))
    await settle()
    return await _seconds(lambda: rclone.copy(source, rclone.at(TARGET_BUCKET, "copy"), *options))


async def _shell(script: str, folder: Path) -> float:
    return await _seconds(lambda: run(["bash", "-o", "pipefail", "-c", script, folder]))


async def _sync() -> None:
    os.sync()


async def _seconds(work: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def check_programs() -> None:
    """Refuse to start without the peers.

    Raises:
        CommandFailed: names what is missing.
    """
    missing = [name for name in ("sha256sum", "openssl", "tar", "find", "xargs", "bash") if not shutil.which(name)]
    if missing:
        raise CommandFailed(f"{', '.join(missing)}: not on PATH; the peers of this benchmark need it")
