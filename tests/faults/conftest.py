"""One stack whose servers may be killed, for all tests of faults."""

import asyncio
from collections.abc import AsyncGenerator, Generator

import pytest

from cli.ports import Ports
from cli.stack import Stack
from tests.fakes.proxy import CountingProxy
from tests.faults.site import CHUNK, Site, lines
from tests.lab import QUICK, visit


@pytest.fixture(scope="session")
def site_of_all(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Stack, CountingProxy, CountingProxy]]:
    """One stack for all tests of faults; what a test kills it starts again."""
    ports = Ports.free()
    with lines(ports) as (s3, lts):
        settings = QUICK | {
            "S3_ENDPOINT": s3.url,
            "LTS_ENDPOINT": lts.url,
            "LTS_CHUNK_BYTES": str(CHUNK),
            # What is on tape stays readable until a test says otherwise.
            "MOCK_LTS_EVICT_AFTER_MIGRATION_S": "600",
        }
        stack = Stack(tmp_path_factory.mktemp("faults"), ports, settings)
        asyncio.run(stack.start())
        try:
            yield stack, s3, lts
        finally:
            asyncio.run(stack.stop())


@pytest.fixture
async def site(site_of_all: tuple[Stack, CountingProxy, CountingProxy]) -> AsyncGenerator[Site]:
    """The stack with all of its processes running, nothing counted yet, and no fault left behind."""
    stack, s3, lts = site_of_all
    stack.check()
    async with visit(stack) as lab:
        s3.forget()
        lts.forget()
        try:
            yield Site(lab, s3, lts)
        finally:
            await lab.lts("DELETE", "/admin/faults")
