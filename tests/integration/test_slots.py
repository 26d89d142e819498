"""Copies that are told to stop give their slots to others, with real copies to a slow LTS."""

from collections import Counter
from typing import Any
from urllib.parse import quote

import pytest

from tests.lab import Lab, eventually, some_bytes

SLOW = 4_000_000
"""Bytes a second of each write: one of the stack's chunks takes more than a second."""


async def shown(lab: Lab, pid: str) -> dict[str, Any]:
    """Where the dataset stands, by the API."""
    answer = await lab.api("GET", f"/archiver/datasets/{quote(pid)}")
    return answer.json() if answer.is_success else {"steps": []}


async def copies(lab: Lab, pid: str) -> Counter[str]:
    """How many of the dataset's writes are in which state."""
    return Counter(step["state"] for step in (await shown(lab, pid))["steps"] if step["name"] == "write_block")


async def copying(lab: Lab, pid: str, **wanted: int) -> None:
    """Wait until that many of its writes are in these states, and none in another."""

    async def there() -> bool:
        return await copies(lab, pid) == wanted

    await eventually(there)


async def tell(lab: Lab, verb: str, pid: str) -> dict[str, Any]:
    """As an operator."""
    settings = lab.stack.settings
    account = (settings.operator_username.get_secret_value(), settings.operator_password.get_secret_value())
    answer = await lab.api("POST", f"/archiver/datasets/{verb}", json={"pid": pid, "by": "nadia"}, auth=account)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
async def slow(lab: Lab) -> Any:
    """A stack whose LTS takes bytes slowly; two datasets that take both slots of the stack's only archival worker."""
    assert lab.stack.settings.archival_slots == 2
    await lab.lts("POST", "/admin/faults", json={"kind": "slow", "direction": "in", "bytes_per_s": SLOW})
    try:
        yield lab
    finally:
        await lab.lts("DELETE", "/admin/faults")


async def test_a_paused_copy_gives_its_slot_to_another_dataset_and_so_does_a_cancelled_one(slow: Lab) -> None:
    movies = {f"movie{n}.tif": some_bytes(30_000_000, n) for n in range(2)}
    first, second = await slow.dataset(movies), await slow.dataset(movies)
    first_job = await slow.archive(first)
    await copying(slow, first, running=2)
    second_job = await slow.archive(second)
    await copying(slow, second, queued=2)

    async def moves() -> dict[str, Any] | None:
        answer = await shown(slow, first)
        return answer if answer["bytes_done"] else None

    inside = await eventually(moves)
    assert inside["bytes_done"] < inside["bytes_total"]
    assert sum(block["bytes_done"] for block in inside["blocks"]) == inside["bytes_done"]

    assert (await tell(slow, "pause", first))["acted"] == [f"archive-dataset/{first}"]
    await copying(slow, second, running=2)
    assert (await shown(slow, first))["phase"] == "paused"

    await tell(slow, "resume", first)
    await copying(slow, first, queued=2)
    await tell(slow, "cancel", second)
    await copying(slow, first, running=2)

    await slow.lts("DELETE", "/admin/faults")
    assert (await slow.ended(first_job))["jobStatusMessage"] == "finishedSuccessful"
    assert (await slow.ended(second_job))["jobStatusMessage"] == "finishedUnsuccessful"
    assert await slow.on_lts(second) == {}
    assert sorted(await slow.landed(second)) == sorted(movies)
