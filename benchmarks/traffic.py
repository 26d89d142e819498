"""Bytes and requests at the stores, counted where they cannot be mistaken.

MinIO's own trace says of every request how many bytes of body it sent; the pretend LTS counts the bytes of every path.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from benchmarks.site import Site

_QUIET_S = 1.0
"""MinIO tells of a request a moment after answering it."""


@dataclass(slots=True)
class Traffic:
    """What the stores counted while something ran."""

    s3_sent: Counter[str] = field(default_factory=Counter[str])
    """Bytes of objects that were read, by bucket."""
    s3_calls: Counter[str] = field(default_factory=Counter[str])
    """Requests, by bucket and call."""
    lts_received: int = 0
    lts_sent: int = 0
    lts_calls: Mapping[str, int] = field(default_factory=dict[str, int])


@asynccontextmanager
async def counted(site: Site) -> AsyncGenerator[Traffic]:
    """Count what goes through the stores during a block; the result is whole when the block has ended."""
    traffic = Traffic()
    connected = asyncio.Event()
    tracing = asyncio.create_task(_trace(site, traffic, connected))
    waiting = asyncio.create_task(connected.wait())
    try:
        await asyncio.wait({tracing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if tracing.done():
            tracing.result()
        await site.lts("DELETE", "/admin/requests")
        yield traffic
        await _quiet(traffic)
        answer = (await site.lts("GET", "/admin/requests")).json()
        traffic.lts_received = sum(path["received"] for path in answer["paths"].values())
        traffic.lts_sent = sum(path["sent"] for path in answer["paths"].values())
        requests = cast("dict[str, dict[str, int]]", answer["requests"])
        traffic.lts_calls = {
            route: counts["count"]
            for route, counts in requests.items()
            if not route.partition(" ")[2].startswith("/ad")
        }
    finally:
        for task in (tracing, waiting):
            task.cancel()
        await asyncio.gather(tracing, waiting, return_exceptions=True)


async def _quiet(traffic: Traffic) -> None:
    """Return when MinIO has told nothing new for a while."""
    told = -1
    while told != (told := traffic.s3_calls.total()):  # noqa: ASYNC110 - silence sets no asyncio.Event
        await asyncio.sleep(_QUIET_S)


async def _trace(site: Site, traffic: Traffic, connected: asyncio.Event) -> None:
    """Follow MinIO's trace, what `mc admin trace` shows, until cancelled."""
    settings = site.settings
    url = f"{settings.s3_endpoint}/minio/admin/v3/trace?s3=true"
    account = Credentials(settings.s3_user.get_secret_value(), settings.s3_password.get_secret_value())
    request = AWSRequest("GET", url, headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
    SigV4Auth(account, "s3", settings.s3_region).add_auth(request)
    async with (
        httpx.AsyncClient(timeout=None, trust_env=False) as http,  # noqa: S113 - silence is what it says most
        http.stream("GET", url, headers=dict(request.headers.items())) as answer,
    ):
        answer.raise_for_status()
        connected.set()
        async for line in answer.aiter_lines():
            if line.strip():
                _take_note(json.loads(line), traffic)


def _take_note(told: dict[str, Any], traffic: Traffic) -> None:
    """Take note of one request; `path` is `/<bucket>/<key>`."""
    call = str(told.get("funcname", "")).removeprefix("s3.")
    bucket = str(told.get("path", "")).lstrip("/").partition("/")[0]
    traffic.s3_calls[f"{bucket} {call}"] += 1
    if call == "GetObject":
        traffic.s3_sent[bucket] += int(told["http"]["stats"]["outputbytes"])
