"""One whole stack for each process that runs tests, and a fresh view of it for every test."""

import asyncio
from collections.abc import AsyncGenerator, Generator

import pytest

from cli.ports import Ports
from cli.stack import Stack
from tests.fakes.stage import end_shared_server
from tests.lab import QUICK, Lab, visit


@pytest.fixture(scope="session", autouse=True)
def temporal_server() -> Generator[None]:
    """No server of the workflow tests outlives them."""
    yield
    end_shared_server()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """Everything, on free ports, quick and small; shared, so a test leaves it as it found it."""
    running = Stack(tmp_path_factory.mktemp("stack"), Ports.free(), QUICK)
    asyncio.run(running.start())
    try:
        yield running
    finally:
        asyncio.run(running.stop())


@pytest.fixture
async def lab(stack: Stack) -> AsyncGenerator[Lab]:
    """The shared stack, with a user and an observer."""
    stack.check()
    async with visit(stack) as lab:
        yield lab
