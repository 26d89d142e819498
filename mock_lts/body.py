"""JSON bodies of requests, within limits of size and time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from mock_lts.problems import Problem

MAX_BYTES = 4 << 20

T = TypeVar("T")


async def parsed(request: Request, adapter: TypeAdapter[T], *, within_s: float, max_bytes: int = MAX_BYTES) -> T:
    """The body as a value; an empty one counts as `{}`. It has to be in in time, however steadily it drips.

    Raises:
        Problem: 400 not what is wanted, 408 too slow, 413 too large.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise Problem(413, f"the body is larger than {max_bytes} bytes", {"Connection": "close"})
    except TimeoutError as error:
        raise Problem(408, f"the body did not arrive within {within_s:g} s", {"Connection": "close"}) from error
    try:
        return adapter.validate_json(bytes(body) or b"{}")
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()[:5])
        raise Problem(400, found) from error
