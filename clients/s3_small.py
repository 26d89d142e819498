"""Many small reads at a time, asynchronous: aiohttp parses an answer in C, where `http.client` holds the GIL.

2,000 reads of 64 KiB take 0.75 s and 0.56 s of CPU this way, 1.14 s and 1.03 s in sixteen threads.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp
from yarl import URL

from clients.s3_wire import Range, Wire, check_range
from domain.errors import ObjectStoreUnavailable

_ERROR_BYTES = 1 << 20


class SmallObjects:
    """Reads small ranges, a bounded number at a time."""

    def __init__(self, session: aiohttp.ClientSession, wire: Wire, ways: int) -> None:
        self._session, self._wire = session, wire
        self._ways = ways
        self._turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        *,
        endpoint: str,
        access_key: str,
        secret_key: str,
        region: str,
        ca_file: Path | None = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        ways: int = 16,
    ) -> AsyncGenerator[Self]:
        """Connect to nothing yet; connections are closed on leaving.

        Args:
            endpoint: address of S3; buckets are named in the path.
            access_key: S3 account.
            secret_key: its secret.
            region: part of every signature.
            ca_file: certificates to trust instead of the system's.
            connect_timeout_s: for the connection and the TLS handshake.
            timeout_s: longest wait for the next bytes.
            ways: requests in flight; more gains nothing.
        """
        tls = ssl.create_default_context(cafile=ca_file) if endpoint.startswith("https:") else True
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=ways, ssl=tls),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=timeout_s),
            auto_decompress=False,
        ) as session:
            yield cls(
                session, Wire(endpoint=endpoint, access_key=access_key, secret_key=secret_key, region=region), ways
            )

    async def read(self, bucket: str, wanted: Iterable[Range]) -> None:
        """Fill the buffers of all ranges, each of them with the bytes of exactly its version with exactly its ETag.

        Raises:
            ObjectChanged: a version is gone, has another ETag, or ends too early.
            ObjectStoreUnavailable: no complete answer.
            Misconfigured: refused credentials, missing bucket.
        """
        coming = iter(wanted)
        try:
            # One call after another: whoever waits for the first buffer should not share the line with the second.
            async with self._turn, asyncio.TaskGroup() as group:
                for _ in range(self._ways):
                    group.create_task(self._drain(bucket, coming))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _drain(self, bucket: str, coming: Iterator[Range]) -> None:
        for wanted in coming:
            if wanted.into.nbytes:
                await self._read(bucket, wanted)

    async def _read(self, bucket: str, wanted: Range) -> None:
        what = f"reading {wanted.key!r} of bucket {bucket}"
        target, headers = self._wire.request("GET", bucket, wanted.key, wanted.query, wanted.headers)
        url = URL(self._wire.origin + target, encoded=True)
        try:
            # aiohttp sends a GET again when a kept connection turns out dead.
            async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
                if answer.status != 206:
                    check_range(answer.status, await answer.content.read(_ERROR_BYTES), wanted.key, what)
                filled = 0
                async for piece in answer.content.iter_any():
                    if filled + len(piece) > wanted.into.nbytes:
                        raise ObjectStoreUnavailable(f"{what}: the answer is longer than the bytes asked for")
                    wanted.into[filled : filled + len(piece)] = piece
                    filled += len(piece)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ObjectStoreUnavailable(f"{what}: {_plain(error)}") from error
        if filled < wanted.into.nbytes:
            raise ObjectStoreUnavailable(f"{what}: the answer ended after {filled} of {wanted.into.nbytes} bytes")


def _plain(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the certificate is not trusted"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
