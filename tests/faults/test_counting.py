"""Without a fault nothing moves twice: every byte is read once, written once, read back once, delivered once."""

import pytest

from tests.faults.site import Site
from tests.lab import some_bytes

pytestmark = pytest.mark.xdist_group("faults")

FILES = {f"movie{n}.tif": some_bytes(7_000_000, n) for n in range(4)} | {
    "long.mrc": some_bytes(17_000_000, 9),
    "empty.txt": b"",
    "session.xml": b"<session/>",
}
PAYLOAD = sum(map(len, FILES.values()))


async def test_an_archive_reads_writes_and_verifies_each_byte_once(site: Site) -> None:
    pid = await site.lab.archived(FILES)

    tars = await site.lab.on_lts(pid)
    assert len(tars) >= 3
    assert site.source_read(pid) == PAYLOAD
    assert site.lts_written() == sum(tars.values())
    assert site.lts_read() == sum(tars.values())


async def test_a_retrieval_reads_and_delivers_each_byte_once_and_the_next_one_none(site: Site) -> None:
    pid = await site.lab.archived(FILES)
    tar_bytes = sum((await site.lab.on_lts(pid)).values())
    site.forget()

    await site.good(await site.lab.retrieve(pid))

    assert site.lts_read() == tar_bytes
    assert site.delivered() == tar_bytes

    site.forget()
    await site.good(await site.lab.retrieve(pid))
    assert (site.lts_read(), site.delivered()) == (0, 0)
