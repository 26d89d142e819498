"""A recall for verification is over when the LTS says so, whichever of its answers says it first."""

from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.tape import AwaitRecalled, TapeActivities
from tests.fakes.lts import FakeFile, FakeLongTermStore

PATH = "datablock.tar"


async def wait(store: FakeLongTermStore, recall_id: str) -> None:
    nothing = cast("Any", None)
    tape = TapeActivities(
        store=store, objects=nothing, small=nothing, landing_bucket="", state=nothing, readers=nothing, buffers=1
    )
    order = AwaitRecalled(archive_id=PATH, recall_id=recall_id, poll_initial_s=1, poll_longest_s=1)
    await ActivityEnvironment().run(tape.await_recalled, order)


async def on_tape() -> tuple[FakeLongTermStore, str]:
    """A recall of a file that is on tape only."""
    store = FakeLongTermStore()
    store.files[PATH] = FakeFile(bytearray(b"tar"), on_disk=False, on_tape=True)
    return store, await store.request_recall([PATH], timedelta(hours=1))


async def test_what_comes_between_the_two_questions_has_come() -> None:
    """The file's locality is asked for first, then the request's state."""
    store, recall_id = await on_tape()
    store.recalls = True
    await wait(store, recall_id)


async def test_what_waits_is_waited_for_and_what_failed_is_told() -> None:
    store, recall_id = await on_tape()
    with pytest.raises(ApplicationError) as waiting:
        await wait(store, recall_id)
    assert waiting.value.type == "NotYet"
    store.fail_recall(PATH, "the tape is torn")
    with pytest.raises(ApplicationError, match="the tape is torn") as failed:
        await wait(store, recall_id)
    assert failed.value.non_retryable
