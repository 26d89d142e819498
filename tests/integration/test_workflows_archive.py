"""The archive of one dataset decides: what it does, keeps, undoes and tells, whatever happens to its steps."""

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta

import pytest

from activities.tape import Refusal
from domain.lifecycle import Outcome, Phase
from domain.orders import Limits, Subscriber, Timing, VerifyPolicy, Writing
from tests.fakes.activities import Held
from tests.fakes.stage import QUICK, Dataset, Stage, namespace, on_stage, skipping

STEPS = ("plan_dataset", "open_block", "write_block", "verify_block", "await_tape", "register_blocks")
"""Those that may fail before the commit point."""

RARE = Timing(retry_longest_s=14_400, poll_initial_s=60, poll_longest_s=14_400)
"""The times of production, but fewer retries and polls."""

_MARKER = "marker_recorded_event_attributes"

AS_FOUND = ("scheduledForArchiving", False, True)
"""A life cycle that no step would write."""


@pytest.fixture
async def stage() -> AsyncGenerator[Stage]:
    """Quick: errors are retried for a minute, polls come at once."""
    async with skipping() as server, on_stage(server.client, QUICK, Limits(blocks=2)) as stage:
        yield stage


@pytest.fixture
async def real() -> AsyncGenerator[Stage]:
    """As `stage`, but timers take a second; the other server chokes on a cancel that crosses its activity's end."""
    async with namespace() as client, on_stage(client, QUICK, Limits(blocks=2)) as stage:
        yield stage


@pytest.fixture
async def slow() -> AsyncGenerator[Stage]:
    """With times that this server skips."""
    async with skipping() as server, on_stage(server.client, RARE) as stage:
        stage.sleep = server.sleep
        yield stage


def found(stage: Stage, pid: str, blocks: int = 2) -> Held:
    held = stage.world.dataset(pid, blocks=blocks)
    status, archivable, retrievable = AS_FOUND
    stage.world.catalogue.known[pid].lifecycle |= {
        "archiveStatusMessage": status,
        "archivable": archivable,
        "retrievable": retrievable,
    }
    return held


async def test_a_dataset_is_archived_and_only_then_freed(slow: Stage) -> None:
    held = slow.world.dataset("p/1", blocks=3)

    outcome = await (await slow.join("p/1", "1")).ended()

    assert (outcome.status, outcome.bytes) == (Outcome.ARCHIVED, 2_700)
    assert held.committed
    assert not held.landed
    assert slow.world.calls["open_block"] == 3
    assert [name for name, _ in slow.world.orders][-4:] == ["commit", "free_dataset", "move_archive", "deliver_outcome"]


async def test_an_error_of_the_user_ends_it_at_once_and_leaves_nothing(real: Stage) -> None:
    for step in STEPS:
        real.world.fail(f"{step}:{step}", "DigestMismatch")
        found(real, step)
    datasets = {step: await real.join(step, "1") for step in STEPS}

    for step, dataset in datasets.items():
        outcome = await dataset.ended()
        assert (outcome.status, outcome.error_class) == (Outcome.DATASET_ERROR, "DigestMismatch"), step
        assert real.world.lifecycle(step) == ("missingFilesError", True, True)
        real.world.assert_nothing_left(step)
        assert real.world.calls[f"{step}:{step}"] <= 2, "a user's error is not retried"


@pytest.mark.parametrize("step", STEPS)
async def test_an_error_of_ours_parks_it_and_a_week_later_ends_it_and_leaves_nothing(slow: Stage, step: str) -> None:
    # One datablock: of two, both would be parked, and this server knows no timer that is cancelled as it fires.
    slow.world.fail(step)
    found(slow, "p", blocks=1)

    outcome = await (await slow.join("p", "1")).ended()

    assert outcome.status is Outcome.FAILED
    assert outcome.error_class == ("MigrationDeadline" if step == "await_tape" else "TapeUnavailable")
    assert slow.world.lifecycle("p") == ("scheduleArchiveJobFailed", True, True)
    slow.world.assert_nothing_left("p")


async def test_two_parked_datablocks_end_together_when_their_time_is_up() -> None:
    timing = QUICK.model_copy(update={"park_s": 1})
    async with namespace() as client, on_stage(client, timing, Limits(blocks=2)) as real:
        real.world.fail("write_block", final=True)
        found(real, "p")

        outcome = await (await real.join("p", "1")).ended()

        assert (outcome.status, outcome.error_class) == (Outcome.FAILED, "TapeUnavailable")
        assert real.world.calls["write_block"] == 2
        real.world.assert_nothing_left("p")


async def test_a_cancel_leaves_all_as_found_whatever_runs(real: Stage) -> None:
    steps = ("look", "move_archive", *STEPS)
    for step in steps:
        real.world.hold(f"{step}:{step}")
        found(real, step)
    datasets = {step: await real.join(step, "1") for step in steps}

    for step, dataset in datasets.items():
        await real.world.reached(f"{step}:{step}")
        await dataset.cancel()
        await real.world.until(lambda step=step: real.world.running[f"{step}:{step}"] == 0)
        real.world.let_go(f"{step}:{step}")
        outcome = await dataset.ended()
        assert outcome.status is Outcome.CANCELLED, step
        assert real.world.lifecycle(step) == AS_FOUND
        real.world.assert_nothing_left(step)


async def test_a_parked_dataset_that_is_given_up_leaves_nothing(real: Stage) -> None:
    for step in STEPS:
        real.world.fail(f"{step}:{step}", final=True)
        found(real, step)
    datasets = {step: await real.join(step, "1") for step in STEPS}

    for step, dataset in datasets.items():
        await dataset.phase(Phase.PARKED)
        await dataset.signal("give_up")
        outcome = await dataset.ended()
        assert (outcome.status, outcome.error_class) == (Outcome.GIVEN_UP, "TapeUnavailable"), step
        assert real.world.lifecycle(step) == ("scheduleArchiveJobFailed", True, True)
        real.world.assert_nothing_left(step)


async def test_undo_runs_in_reverse_and_looks_a_second_time(stage: Stage) -> None:
    stage.world.dataset("p", blocks=2)
    stage.world.hold("register_blocks")
    dataset = await stage.join("p", "1")
    await stage.world.reached("register_blocks")

    await dataset.cancel()
    await dataset.ended()

    steps = [name for name, _ in stage.world.orders]
    undone = ["unregister_blocks", "undo_blocks"]
    # It is tried on the spot and once more as an activity of its own, which is what the cancel meets.
    assert steps[steps.index("register_blocks") + 2 :] == [*undone, *undone, "move_archive", "deliver_outcome"]


async def test_a_dataset_that_is_gone_from_scicat_can_still_be_undone(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block")
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block")

    del stage.world.catalogue.known["p"]
    await dataset.cancel()

    assert (await dataset.ended()).status is Outcome.CANCELLED
    stage.world.assert_nothing_left("p")


async def test_an_upload_that_was_opened_in_spite_of_a_cancel_is_aborted(stage: Stage) -> None:
    stage.world.dataset("p", blocks=2)
    stage.world.hold("open_block", deaf=True)
    dataset = await stage.join("p", "1")
    await stage.world.reached("open_block")

    await dataset.cancel()
    await dataset.progress()
    stage.world.let_go("open_block")

    assert (await dataset.ended()).status is Outcome.CANCELLED
    stage.world.assert_nothing_left("p")


async def test_a_cancel_right_after_a_pause_is_not_lost(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block", deaf=True)
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block")

    await dataset.signal("pause")
    await dataset.phase(Phase.PAUSED)
    await dataset.cancel()
    await dataset.progress()
    stage.world.let_go("write_block")

    assert (await dataset.ended()).status is Outcome.CANCELLED
    stage.world.assert_nothing_left("p")


async def test_cancel_during_a_cancel_changes_nothing(stage: Stage) -> None:
    stage.world.dataset("p", blocks=2)
    stage.world.hold("undo_blocks", deaf=True)
    stage.world.hold("write_block")
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block", 2)

    await dataset.cancel()
    await stage.world.reached("undo_blocks")
    await dataset.cancel()
    await dataset.signal("give_up")
    await dataset.signal("pause")
    stage.world.let_go("undo_blocks")

    assert (await dataset.ended()).status is Outcome.CANCELLED
    stage.world.assert_nothing_left("p")


# Behind the commit point.


@pytest.mark.parametrize("step", ["commit", "free_dataset"])
async def test_behind_the_commit_point_it_is_too_late_to_cancel_to_leave_or_to_give_up(stage: Stage, step: str) -> None:
    held = stage.world.dataset("p")
    stage.world.hold(step)
    dataset = await stage.join("p", "1")
    await stage.world.reached(step)

    said: list[str] = []
    for ask in (dataset.cancel(), dataset.signal("leave", "1"), dataset.signal("give_up")):
        await ask
        said.append((await dataset.progress()).note)
    assert [note.partition(": ")[0] for note in said] == [
        "an operator cancelled it",
        "job 1 was cancelled",
        "it was given up",
    ]
    assert all("too late, already archived" in note for note in said)
    stage.world.let_go(step)

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert held.committed
    assert not held.landed
    assert stage.world.calls["undo_blocks"] == 0


async def test_behind_the_commit_point_errors_are_retried_for_longer_than_a_dataset_would_be_parked(
    slow: Stage,
) -> None:
    held = slow.world.dataset("p")
    slow.world.fail("commit", "CatalogueUnavailable", times=400)

    assert (await (await slow.join("p", "1")).ended()).status is Outcome.ARCHIVED
    assert held.committed


async def test_behind_the_commit_point_even_a_final_error_only_parks(stage: Stage) -> None:
    held = stage.world.dataset("p")
    stage.world.fail("free_dataset", "UnknownDataset", times=2)
    dataset = await stage.join("p", "1")
    await dataset.phase(Phase.PARKED)

    await dataset.signal("give_up")
    await dataset.cancel()
    assert (await dataset.progress()).phase == Phase.PARKED
    await dataset.signal("retry")

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert not held.landed


# Steps on the spot.


async def test_a_brief_step_that_fails_on_the_spot_is_done_by_an_activity(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.fail("commit", times=1)

    dataset = await stage.join("p", "1")

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert stage.world.calls["commit"] == 2
    scheduled = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in (await dataset.handle.fetch_history()).events
    ]
    assert "commit" in scheduled
    assert "look" not in scheduled, "what works on the spot needs no activity"


async def test_a_step_on_the_spot_that_is_late_ends_before_it_is_done_otherwise(real: Stage) -> None:
    real.world.dataset("p")
    real.world.hold("commit", deaf=True)

    dataset = await real.join("p", "1")
    await real.world.until(lambda: real.world.calls["commit"] == 2)

    assert real.world.running["commit"] == 1, "the first one still runs, and writes what it likes"
    real.world.let_go("commit")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    events = (await dataset.handle.fetch_history()).events
    failures = [event.marker_recorded_event_attributes.failure for event in events if event.HasField(_MARKER)]
    [late] = [failure for failure in failures if failure.WhichOneof("failure_info")]
    assert late.application_failure_info.type == "TimeoutError", "the worker ends it, and not the SDK's own time-out"


# Parking, pausing, retrying.


async def test_a_parked_dataset_keeps_its_work_and_goes_on_when_told_to(stage: Stage) -> None:
    world = stage.world
    held = world.dataset("p", blocks=2)
    world.fail("verify_block", final=True)
    dataset = await stage.join("p", "1")
    shown = await dataset.phase(Phase.PARKED)
    assert shown.waiting_for == "TapeUnavailable: verify_block fails as told"
    await world.until(lambda: len(held.lts) == 2)
    await world.until(lambda: world.calls["verify_block"] == 2)
    await dataset.quiet()

    await dataset.signal("retry")
    await world.until(lambda: world.calls["verify_block"] == 4)
    await dataset.quiet()
    await dataset.phase(Phase.PARKED)
    world.heal("verify_block")
    await dataset.signal("retry")

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert world.calls["write_block"] == 2


async def test_give_up_is_only_for_the_parked(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block")
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block")

    await dataset.signal("give_up")
    await dataset.progress()
    stage.world.let_go("write_block")

    assert (await dataset.ended()).status is Outcome.ARCHIVED


async def test_retry_cuts_a_backoff_short(slow: Stage) -> None:
    slow.timing = Timing(retry_initial_s=3_600, retry_longest_s=3_600)
    slow.world.dataset("p")
    slow.world.fail("write_block", times=1)
    dataset = await slow.join("p", "1")
    await slow.world.until(lambda: slow.world.calls["write_block"] == 1)

    await dataset.signal("retry")

    await slow.world.until(lambda: slow.world.calls["write_block"] == 2)
    assert (await dataset.ended()).status is Outcome.ARCHIVED


async def test_pause_stops_the_running_copies_and_starts_nothing_until_resumed(stage: Stage) -> None:
    stage.world.dataset("p", blocks=4)
    stage.world.hold("write_block")
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block", 2)

    await dataset.signal("pause", "alice")
    shown = await dataset.phase(Phase.PAUSED)
    await stage.world.until(lambda: stage.world.cancelled["write_block"] == 2)
    assert shown.paused_by == "alice"
    await dataset.signal("retry")
    await dataset.signal("recall_ready")
    stage.world.let_go("write_block")
    await dataset.progress()
    calls = sum(stage.world.calls.values())
    await dataset.progress()
    assert sum(stage.world.calls.values()) == calls

    await dataset.signal("resume")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert stage.world.calls["open_block"] == 4, "the uploads are gone on with"
    assert stage.world.highest["write_block"] == 2


# Tape.


@pytest.mark.fault("nothing is migrated for two days", "parked; `retry` waits on")
async def test_a_datablock_that_does_not_get_on_tape_for_two_days_parks_and_may_go_on(slow: Stage) -> None:
    held = slow.world.dataset("p", off_line=True)
    dataset = await slow.join("p", "1")
    await dataset.phase(Phase.WAITING_TAPE)
    assert slow.sleep
    await slow.sleep(timedelta(days=2, hours=1))
    shown = await dataset.phase(Phase.PARKED)
    assert shown.waiting_for.startswith("MigrationDeadline: not on tape yet")

    await dataset.signal("retry")
    await dataset.phase(Phase.WAITING_TAPE)
    await slow.sleep(timedelta(days=1))
    held.off_line = False
    await dataset.signal("recall_ready")

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert slow.world.calls["write_block"] == 1


async def test_datablocks_that_wait_for_tape_give_their_slot_to_the_next(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=7, off_line=True)
    dataset = await stage.join("p", "1")
    await stage.world.until(lambda: len(held.verified) == 7)
    held.off_line = False
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert stage.world.highest["write_block"] <= 2


async def test_a_damaged_datablock_is_written_anew_once_and_its_first_copy_goes(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=2, damaged={2: 1})
    assert (await (await stage.join("p", "1")).ended()).status is Outcome.ARCHIVED
    assert held.registered == held.lts == {(1, 0), (2, 1)}


async def test_a_datablock_that_is_damaged_twice_parks_and_may_be_written_once_more(stage: Stage) -> None:
    held = stage.world.dataset("p", damaged={1: 2})
    dataset = await stage.join("p", "1")
    shown = await dataset.phase(Phase.PARKED)
    assert shown.waiting_for == "Damaged: datablock 1 of generation 1 is damaged"

    await dataset.signal("retry")

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert held.registered == held.lts == {(1, 2)}


async def test_an_undo_takes_all_generations_of_a_damaged_datablock(stage: Stage) -> None:
    stage.world.dataset("p", damaged={1: 2})
    dataset = await stage.join("p", "1")
    await dataset.phase(Phase.PARKED)
    await dataset.signal("give_up")
    assert (await dataset.ended()).status is Outcome.GIVEN_UP
    stage.world.assert_nothing_left("p")


async def test_a_vanished_upload_is_opened_anew(stage: Stage) -> None:
    held = stage.world.dataset("p")
    stage.world.hold("write_block")
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block")
    held.uploads.clear()
    stage.world.let_go("write_block")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert stage.world.calls["open_block"] == 2


# A datablock that went to tape before it was verified.


async def test_a_datablock_on_tape_is_recalled_to_be_verified_and_released(stage: Stage) -> None:
    held = stage.world.dataset("p", nearline={1}, broken={1: 1})
    assert (await (await stage.join("p", "1")).ended()).status is Outcome.ARCHIVED
    assert held.pins == {}
    assert stage.world.calls["recall_block"] == 2, "the first recall failed"


async def test_a_recall_for_verification_that_keeps_failing_parks_and_is_asked_for_anew_on_retry(stage: Stage) -> None:
    held = stage.world.dataset("p", nearline={1}, broken={1: 3})
    dataset = await stage.join("p", "1")
    await dataset.phase(Phase.PARKED)
    await dataset.signal("retry")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert held.pins == {}


@pytest.mark.parametrize("step", ["recall_block", "await_recalled"])
async def test_a_cancel_while_recalling_for_verification_gives_the_pin_back(real: Stage, step: str) -> None:
    real.world.dataset("p", nearline={1}, stuck={1})
    real.world.hold(step, deaf=True)
    dataset = await real.join("p", "1")
    await real.world.reached(step)
    await dataset.cancel()
    await dataset.progress()
    real.world.let_go(step)
    assert (await dataset.ended()).status is Outcome.CANCELLED
    real.world.assert_nothing_left("p")


async def test_a_cancel_while_a_pin_cannot_be_given_back_neither_hangs_nor_forgets_it(stage: Stage) -> None:
    stage.world.dataset("p", nearline={1})
    stage.world.fail("release_block", times=10)
    dataset = await stage.join("p", "1")
    await stage.world.until(lambda: stage.world.calls["release_block"] >= 2)
    await dataset.cancel()
    assert (await dataset.ended()).status is Outcome.CANCELLED
    stage.world.assert_nothing_left("p")


async def test_a_recall_for_verification_that_never_comes_parks(slow: Stage) -> None:
    held = slow.world.dataset("p", nearline={1}, stuck={1})
    dataset = await slow.join("p", "1")
    await slow.world.reached("await_recalled", 0)
    await slow.days(7.1)
    assert (await dataset.phase(Phase.PARKED)).waiting_for.startswith("RecallDeadline: still on tape")
    held.stuck.clear()
    await dataset.signal("retry")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert held.pins == {}


# Archived already.


async def test_an_archived_dataset_is_only_freed(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=2, committed=True)
    outcome = await (await stage.join("p", "1")).ended()
    assert (outcome.status, outcome.bytes) == (Outcome.ALREADY_ARCHIVED, 1_800)
    assert not held.landed
    assert stage.world.calls["write_block"] == stage.world.calls["verify_block"] == 0
    assert stage.world.lifecycle("p") == ("datasetOnArchiveDisk", False, True)


async def test_an_archived_dataset_that_was_never_verified_is_verified_before_it_is_freed(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=3, committed=True, unverified=(2,), damaged={2: 1})
    dataset = await stage.join("p", "1")
    await dataset.phase(Phase.PARKED)
    await dataset.signal("retry")
    await stage.world.until(lambda: stage.world.calls["verify_block"] == 2)
    await dataset.phase(Phase.PARKED)
    assert held.landed, "a damaged archive frees nothing, however often one says retry"

    held.damaged.clear()
    await dataset.signal("retry")
    assert (await dataset.ended()).status is Outcome.ALREADY_ARCHIVED
    assert not held.landed


async def test_an_archived_dataset_of_which_the_lts_holds_something_else_is_verified_before_it_is_freed(
    stage: Stage,
) -> None:
    held = stage.world.dataset("p", blocks=2, committed=True, off_tape=(1,), damaged={1: 1})
    dataset = await stage.join("p", "1")
    await dataset.phase(Phase.PARKED)
    await dataset.signal("give_up")
    assert (await dataset.ended()).status is Outcome.GIVEN_UP
    assert held.landed
    assert held.committed
    assert stage.world.lifecycle("p") == ("datasetCreated", True, False), "not started, so nothing to set back"


# Before the first step.


async def test_a_job_that_leaves_before_the_first_step_cancels_it() -> None:
    async with skipping() as server:
        early = Stage(server.client, None, QUICK)  # pyright: ignore[reportArgumentType] - needs no world
        alone, shared = await early.join("alone", "1"), await early.join("shared", "1")
        for dataset in (alone, shared):
            await dataset.signal("leave", "1")
        await shared.signal("join", Subscriber(job_id="2", n=0))
        async with on_stage(server.client, QUICK) as stage:
            for pid in ("alone", "shared"):
                stage.world.dataset(pid)
            assert (await alone.ended()).status is Outcome.CANCELLED
            assert stage.world.calls["look:alone"] == 0
            assert (await shared.ended()).status is Outcome.ARCHIVED
            assert stage.world.outcome("2").status is Outcome.ARCHIVED


async def test_an_operator_cancels_before_the_first_step() -> None:
    async with skipping() as server:
        early = Stage(server.client, None, QUICK)  # pyright: ignore[reportArgumentType] - needs no world
        dataset: Dataset = await early.join("p", "1")
        await dataset.cancel()
        async with on_stage(server.client, QUICK) as stage:
            stage.world.dataset("p")
            assert (await dataset.ended()).status is Outcome.CANCELLED
            stage.world.assert_nothing_left("p")
            assert stage.world.outcome("1").status is Outcome.CANCELLED


# Written, verified, on tape: three facts.


async def test_only_what_is_written_verified_and_on_tape_is_called_safe(stage: Stage) -> None:
    stage.world.dataset("p", blocks=3, off={1})
    stage.world.hold("verify_block")
    dataset = await stage.join("p", "1")
    await stage.world.reached("verify_block", 2)
    shown = await dataset.progress()
    assert shown.safety == {"written": 2, "verified": 0, "on_tape": 0, "safe": 0}
    assert [(b.state, b.written, b.verified, b.on_tape) for b in shown.blocks] == [
        ("verifying", True, False, False),
        ("verifying", True, False, False),
        ("planned", False, False, False),
    ]

    stage.world.let_go("verify_block")
    shown = await dataset.safe(2)
    assert shown.safety == {"written": 3, "verified": 3, "on_tape": 2, "safe": 2}
    assert shown.states == {"waiting_tape": 1, "safe": 2}
    assert [block.state for block in shown.blocks] == ["waiting_tape", "safe", "safe"]

    stage.world.held["p"].off.clear()
    assert (await dataset.ended()).status is Outcome.ARCHIVED


async def test_by_tape_read_back_nothing_is_verified_before_it_comes_from_tape(stage: Stage) -> None:
    stage.writing = Writing(verify=VerifyPolicy.TAPE_READ_BACK)
    held = stage.world.dataset("p", blocks=2, off_line=True, cached=True)
    dataset = await stage.join("p", "1")
    await stage.world.until(lambda: len(held.lts) == 2)
    shown = await dataset.phase(Phase.WAITING_TAPE)
    assert stage.world.calls["verify_block"] == 0

    held.off_line = False
    await stage.world.until(lambda: stage.world.calls["await_evicted"] >= 2)
    shown = await dataset.phase(Phase.WAITING_TAPE)
    assert shown.safety == {"written": 2, "verified": 0, "on_tape": 2, "safe": 0}
    assert shown.waiting_for == "the LTS to free its cache, to read back from tape"
    assert stage.world.calls["verify_block"] == 0

    held.cached = False
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert stage.world.calls["recall_block"] == 2
    assert held.verified == {(1, 0), (2, 0)}
    assert held.pins == {}


async def test_by_tape_read_back_what_is_damaged_on_tape_is_written_anew(stage: Stage) -> None:
    stage.writing = Writing(verify=VerifyPolicy.TAPE_READ_BACK)
    held = stage.world.dataset("p", damaged={1: 1})
    assert (await (await stage.join("p", "1")).ended()).status is Outcome.ARCHIVED
    assert held.registered == held.lts == {(1, 1)}
    assert held.pins == {}


@pytest.mark.fault("the LTS never frees its cache, and proof from tape is wanted", "parked after two days")
async def test_a_cache_that_is_never_freed_parks_a_dataset_that_is_to_be_read_back_from_tape(slow: Stage) -> None:
    slow.writing = Writing(verify=VerifyPolicy.TAPE_READ_BACK)
    held = slow.world.dataset("p", cached=True)
    dataset = await slow.join("p", "1")
    await slow.world.until(lambda: slow.world.calls["await_evicted"] > 0)
    await slow.days(2.1)
    assert (await dataset.phase(Phase.PARKED)).waiting_for.startswith("CacheDeadline: still in the cache")
    held.cached = False
    await dataset.signal("retry")
    assert (await dataset.ended()).status is Outcome.ARCHIVED


async def test_a_pin_is_renewed_while_a_datablock_is_read_back_from_tape(real: Stage) -> None:
    real.timing = QUICK.model_copy(update={"pin_lifetime_s": 1.0})
    held = real.world.dataset("p", nearline={1}, stuck={1})
    dataset = await real.join("p", "1")
    await real.world.until(lambda: real.world.calls["await_recalled"] > 0)
    real.world.hold("verify_block")
    held.stuck.clear()
    await real.world.reached("verify_block")
    await real.world.until(lambda: real.world.calls["release_block"] >= 2)
    assert len(held.pins) >= 1
    real.world.let_go("verify_block")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert held.pins == {}


async def test_a_datablock_that_is_lost_before_it_is_on_tape_is_written_anew_once(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=2, vanishing={1: 1})
    assert (await (await stage.join("p", "1")).ended()).status is Outcome.ARCHIVED
    assert held.registered == held.lts == {(1, 1), (2, 0)}


async def test_a_datablock_that_is_lost_twice_parks(stage: Stage) -> None:
    stage.world.dataset("p", vanishing={1: 2})
    dataset = await stage.join("p", "1")
    shown = await dataset.phase(Phase.PARKED)
    assert shown.waiting_for == "Damaged: the LTS has lost datablock 1 before it was on tape"
    await dataset.signal("give_up")
    assert (await dataset.ended()).status is Outcome.GIVEN_UP
    stage.world.assert_nothing_left("p")


# An LTS that takes nothing for now.

FULL = Refusal(no_space=True, reason="the cache is full", told_s=3_600)


@pytest.mark.parametrize("step", ["open_block", "write_block"])
async def test_a_full_lts_is_waited_for_longer_than_any_failure(slow: Stage, step: str) -> None:
    held = slow.world.dataset("p", refusals={step: FULL})
    dataset = await slow.join("p", "1")
    await slow.world.until(lambda: slow.world.calls[step] >= 2)
    await slow.days(12)
    shown = await dataset.progress()
    assert shown.phase is Phase.WRITING
    since = shown.waiting_for.removeprefix("space on the LTS since ").removesuffix(" (the cache is full)")
    assert datetime.fromisoformat(since).tzinfo
    assert shown.states == {"waiting_space": 1}
    assert len((await dataset.handle.fetch_history()).events) < 60, "polls add nothing"

    held.refusals.clear()
    await dataset.signal("recall_ready")

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert held.lts == {(1, 0)}
    assert held.uploads == set()
    first, second = slow.world.asked(step)[:2]
    assert (first.refused_since, second.told_s) == ("", 3_600)
    assert slow.world.asked(step)[-1].told_s == 0, "who says that it is ready knows better"


async def test_a_busy_lts_is_said_to_be_busy(stage: Stage) -> None:
    held = stage.world.dataset("p", refusals={"open_block": Refusal(no_space=False, reason="429")})
    dataset = await stage.join("p", "1")
    await stage.world.until(lambda: stage.world.calls["open_block"] >= 2)
    assert (await dataset.progress()).waiting_for.startswith("the LTS, which is busy, since 20")
    held.refusals.clear()
    assert (await dataset.ended()).status is Outcome.ARCHIVED


async def test_who_waits_for_space_and_meets_another_error_is_parked_like_anybody(slow: Stage) -> None:
    held = slow.world.dataset("p", refusals={"open_block": FULL})
    dataset = await slow.join("p", "1")
    await slow.world.until(lambda: slow.world.calls["open_block"] >= 2)
    slow.world.fail("open_block", final=True)
    await dataset.signal("recall_ready")
    await dataset.phase(Phase.PARKED)
    slow.world.heal("open_block")
    held.refusals.clear()
    await dataset.signal("retry")
    assert (await dataset.ended()).status is Outcome.ARCHIVED


@pytest.mark.parametrize("step", ["open_block", "write_block"])
async def test_a_cancel_while_it_waits_for_space_leaves_nothing(real: Stage, step: str) -> None:
    real.world.dataset("p", refusals={step: FULL.model_copy(update={"told_s": 0})})
    dataset = await real.join("p", "1")
    await real.world.until(lambda: real.world.calls[step] >= 2)
    await dataset.cancel()
    assert (await dataset.ended()).status is Outcome.CANCELLED
    real.world.assert_nothing_left("p")


# Long histories.


async def test_an_archive_whose_history_is_full_goes_on_in_a_fresh_run_and_waits_for_no_tape(real: Stage) -> None:
    real.limits = Limits(blocks=3, history=150)
    held = real.world.dataset("p", blocks=40, off={1, 2, 3}, damaged={7: 1}, vanishing={9: 1})
    dataset = await real.join("p", "1")
    shown = await dataset.safe(37)
    assert shown.phase is Phase.WAITING_TAPE
    assert shown.safety == {"written": 40, "verified": 40, "on_tape": 37, "safe": 37}
    assert shown.jobs == ("job/1",)
    assert len(await real.runs(dataset)) >= 3
    held.off.clear()
    await dataset.signal("recall_ready")
    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert held.registered == held.lts
    assert {key for key in held.lts if key[1]} == {(7, 1), (9, 1)}
    assert real.world.calls["plan_dataset"] == 1
    assert real.world.calls["write_block"] == 42, "nothing is written twice because of it"
    assert max(len(run.events) for run in await real.runs(dataset)) < 300


async def test_a_cancel_after_a_fresh_run_began_leaves_nothing(real: Stage) -> None:
    real.limits = Limits(blocks=2, history=60)
    real.world.dataset("p", blocks=12, off={12})
    dataset = await real.join("p", "1")
    await dataset.phase(Phase.WAITING_TAPE, within_s=30)
    await dataset.cancel()
    assert (await dataset.ended()).status is Outcome.CANCELLED
    real.world.assert_nothing_left("p")
    assert len(await real.runs(dataset)) > 1


async def test_many_datablocks_share_few_waits_for_tape(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=60, off_line=True)
    dataset = await stage.join("p", "1")
    await stage.world.until(lambda: len(held.verified) == 60)
    described = await dataset.handle.describe()
    waits = [a for a in described.raw_description.pending_activities if a.activity_type.name == "await_tape"]
    assert 1 <= len(waits) <= 20
    held.off_line = False
    assert (await dataset.ended()).status is Outcome.ARCHIVED


async def test_give_up_during_an_undo_that_is_parked_counts_for_nothing_later(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.hold("write_block")
    stage.world.fail("undo_blocks", final=True, times=1)
    dataset = await stage.join("p", "1")
    await stage.world.reached("write_block")
    await dataset.signal("leave", "1")
    await dataset.phase(Phase.PARKED)
    await dataset.signal("give_up")
    assert (await dataset.progress()).phase is Phase.PARKED
    await dataset.signal("retry")
    assert (await dataset.ended()).status is Outcome.CANCELLED
    stage.world.assert_nothing_left("p")
