"""What Temporal can hold: few events for each datablock, small payloads whatever the dataset's size."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowHistory

from domain import names
from tests.faults.site import Site
from tests.lab import Lab

pytestmark = pytest.mark.xdist_group("faults")

MAX_EVENTS_PER_BLOCK = 32
MAX_PAYLOAD_BYTES = 256_000


async def histories(lab: Lab, workflow_id: str) -> list[WorkflowHistory]:
    """Those of all its runs."""
    return [
        await lab.temporal.get_workflow_handle(run.id, run_id=run.run_id).fetch_history()
        async for run in lab.temporal.list_workflows(f"WorkflowId = '{workflow_id}'")
    ]


def payloads(message: Message) -> Iterator[int]:
    """Sizes of all payloads in a message, however deep."""
    if isinstance(message, Payload):
        yield message.ByteSize()
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = list(value.values())
        else:
            inner = list(value) if field.is_repeated else [value]
        for each in inner:
            if isinstance(each, Message):
                yield from payloads(each)


def largest_payload(found: list[WorkflowHistory]) -> int:
    return max(size for history in found for event in history.events for size in payloads(event))


async def many(lab: Lab, files: Mapping[str, bytes]) -> str:
    """A dataset of many small files, uploaded side by side."""
    pid = await lab.dataset(files, upload=False)
    limit = asyncio.Semaphore(32)

    async def put(path: str, content: bytes) -> None:
        async with limit:
            await lab.objects.put(lab.landing, names.raw_key(pid, path), content)

    paths = list(files)
    for first in range(0, len(paths), 1_000):
        await asyncio.gather(*(put(path, files[path]) for path in paths[first : first + 1_000]))
    return pid


@pytest.mark.parametrize(
    "blocks",
    [40, pytest.param(400, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)
async def test_a_datablock_takes_few_events(site: Site, blocks: int) -> None:
    """Of 400 datablocks the run is continued as new on the way."""
    lab = site.lab
    files = {f"movie{n:04}.tif": b"%d" % n for n in range(blocks)}
    pid = await many(lab, files)
    job = await site.archive(pid, target_files=1)
    await site.good(job, within_s=600)
    assert len(await lab.user.datablocks(pid)) == blocks
    await site.good(await site.retrieve(pid), within_s=600)

    for workflow_id in (names.archive_workflow(pid), names.retrieve_workflow(pid)):
        runs = await histories(lab, workflow_id)
        events = sum(len(history.events) for history in runs)
        assert events <= MAX_EVENTS_PER_BLOCK * blocks
        assert largest_payload(runs) < MAX_PAYLOAD_BYTES
    assert largest_payload(await histories(lab, names.job_workflow(job))) < MAX_PAYLOAD_BYTES


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("shape", ["files", "folders"])
async def test_a_dataset_of_very_many_files(site: Site, shape: str) -> None:
    """100,000 files in one folder; 5,000 folders of four files each."""
    lab = site.lab
    files = (
        {f"frame{n:06}.tif": b"%d" % n for n in range(100_000)}
        if shape == "files"
        else {f"grid{n // 100:02}/square {n}/foil%20{f}.tif": b"%d %d" % (n, f) for n in range(5_000) for f in range(4)}
    )
    pid = await many(lab, files)
    job = await site.archive(pid)
    await site.good(job, within_s=1200)
    await site.good(await site.retrieve(pid), within_s=600)

    blocks: list[dict[str, Any]] = await lab.user.datablocks(pid)
    listed = {entry["path"]: entry["size"] for block in blocks for entry in block["dataFileList"]}
    assert listed == {path: len(content) for path, content in files.items()}
    assert len(blocks) >= len(files) // 20_000
    assert await lab.landed(pid) == {}
    assert await lab.unpacked(pid) == files
    runs = await histories(lab, names.archive_workflow(pid)) + await histories(lab, names.retrieve_workflow(pid))
    assert largest_payload(runs) < MAX_PAYLOAD_BYTES
