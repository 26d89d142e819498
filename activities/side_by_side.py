"""Many small questions to a store, a few at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def each(ask: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int = 8) -> list[R]:
    """The answers in the order of the items; the first error is raised."""
    limit = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with limit:
            return await ask(item)

    return await asyncio.gather(*map(one, items))
