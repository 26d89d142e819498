"""The archive of one dataset decides: what it does, keeps, undoes and tells, whatever happens to its steps."""

from collections.abc import AsyncGenerator
from datetime import timedelta

import pytest

from domain.lifecycle import Outcome, Phase
from domain.orders import Limits, Subscriber, Timing
from tests.fakes.activities import Held
from tests.fakes.stage import QUICK, Dataset, Stage, dev_server, on_stage, skipping

STEPS = ("plan_dataset", "open_block", "write_block", "verify_block", "await_tape", "register_blocks")
"""Those that may fail before the commit point."""

RARE = Timing(retry_longest_s=14_400, poll_initial_s=60, poll_longest_s=14_400)
"""The times of production, but fewer retries and polls."""

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
    async with await dev_server() as server, on_stage(server.client, QUICK, Limits(blocks=2)) as stage:
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


async def test_an_error_of_ours_parks_it_and_a_week_later_ends_it_and_leaves_nothing(slow: Stage) -> None:
    for step in STEPS:
        slow.world.fail(f"{step}:{step}")
        found(slow, step, blocks=1)
    datasets = {step: await slow.join(step, "1") for step in STEPS}

    for step, dataset in datasets.items():
        outcome = await dataset.ended()
        assert outcome.status is Outcome.FAILED, step
        assert outcome.error_class == ("MigrationDeadline" if step == "await_tape" else "TapeUnavailable")
        assert slow.world.lifecycle(step) == ("scheduleArchiveJobFailed", True, True)
        slow.world.assert_nothing_left(step)


async def test_a_cancel_leaves_all_as_found_whatever_runs(stage: Stage) -> None:
    steps = ("look", "move_archive", *STEPS)
    for step in steps:
        stage.world.hold(f"{step}:{step}")
        found(stage, step)
    datasets = {step: await stage.join(step, "1") for step in steps}

    for step, dataset in datasets.items():
        await stage.world.reached(f"{step}:{step}")
        await dataset.cancel()
        await stage.world.until(lambda step=step: stage.world.running[f"{step}:{step}"] == 0)
        stage.world.let_go(f"{step}:{step}")
        outcome = await dataset.ended()
        assert outcome.status is Outcome.CANCELLED, step
        assert stage.world.lifecycle(step) == AS_FOUND
        stage.world.assert_nothing_left(step)


async def test_a_parked_dataset_that_is_given_up_leaves_nothing(stage: Stage) -> None:
    for step in STEPS:
        stage.world.fail(f"{step}:{step}", final=True)
        found(stage, step)
    datasets = {step: await stage.join(step, "1") for step in STEPS}

    for step, dataset in datasets.items():
        await dataset.phase(Phase.PARKED)
        await dataset.signal("give_up")
        outcome = await dataset.ended()
        assert (outcome.status, outcome.error_class) == (Outcome.GIVEN_UP, "TapeUnavailable"), step
        assert stage.world.lifecycle(step) == ("scheduleArchiveJobFailed", True, True)
        stage.world.assert_nothing_left(step)


async def test_undo_runs_in_reverse_and_looks_a_second_time(stage: Stage) -> None:
    stage.world.dataset("p", blocks=2)
    stage.world.hold("register_blocks")
    dataset = await stage.join("p", "1")
    await stage.world.reached("register_blocks")

    await dataset.cancel()
    await dataset.ended()

    steps = [name for name, _ in stage.world.orders]
    undone = ["unregister_blocks", "undo_blocks"]
    assert steps[steps.index("register_blocks") + 1 :] == [*undone, *undone, "move_archive", "deliver_outcome"]


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
    stage.world.dataset("p")
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

    await dataset.cancel()
    await dataset.signal("leave", "1")
    await dataset.signal("give_up")
    await dataset.progress()
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
    stage.world.fail("free_dataset", "UnknownDataset", times=1)
    dataset = await stage.join("p", "1")
    await dataset.phase(Phase.PARKED)

    await dataset.signal("give_up")
    await dataset.cancel()
    assert (await dataset.progress()).phase == Phase.PARKED
    await dataset.signal("retry")

    assert (await dataset.ended()).status is Outcome.ARCHIVED
    assert not held.landed


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

    await dataset.signal("retry")
    await world.until(lambda: world.calls["verify_block"] == 4)
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
    slow.world.fail("open_block", times=1)
    dataset = await slow.join("p", "1")
    await slow.world.until(lambda: slow.world.calls["open_block"] == 1)

    await dataset.signal("retry")

    await slow.world.until(lambda: slow.world.calls["open_block"] == 2)
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
