"""The retrieval of one dataset decides: what it recalls, what it gives back, and what it calls retrieved."""

from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest

from domain.lifecycle import JobType, Outcome, Phase
from domain.orders import FilesOf, Limits, Timing
from tests.fakes.stage import QUICK, Dataset, Stage, namespace, on_stage, skipping

RETRIEVE = JobType.RETRIEVE
FILES = FilesOf(job_id="1", n=0)
"""What makes of a retrieval one of single files."""


@pytest.fixture
async def stage() -> AsyncGenerator[Stage]:
    async with skipping() as server, on_stage(server.client, QUICK, Limits(blocks=3)) as stage:
        yield stage


@pytest.fixture
async def real() -> AsyncGenerator[Stage]:
    """A server that bears a cancel which crosses its activity's end."""
    async with namespace() as client, on_stage(client, QUICK, Limits(blocks=3)) as stage:
        yield stage


@pytest.fixture
async def slow() -> AsyncGenerator[Stage]:
    """With the times of production, which this server skips."""
    async with skipping() as server, on_stage(server.client, Timing(poll_initial_s=60, poll_longest_s=14_400)) as stage:
        stage.sleep = server.sleep
        yield stage


async def retrieve(stage: Stage, pid: str = "p", files_of: FilesOf | None = None) -> Dataset:
    return await stage.join(pid, "1", kind=RETRIEVE, files_of=files_of)


def status(stage: Stage, pid: str = "p") -> tuple[str, str]:
    life = stage.world.catalogue.known[pid].lifecycle
    return life["retrieveStatusMessage"], life.get("retrieveReturnMessage", {}).get("message", "")


async def test_what_is_missing_is_recalled_at_once_copied_and_released(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=5, delivered={1, 3})
    outcome = await (await retrieve(stage)).ended()
    assert (outcome.status, outcome.undelivered) == (Outcome.RETRIEVED, ())
    assert held.delivered == {0, 1, 2, 3, 4}
    assert held.pins == {}
    assert [order.positions.numbers for order in stage.world.asked("request_recall")] == [(0, 2, 4)]
    assert status(stage) == ("datasetRetrieved", "")
    assert stage.world.highest["copy_block"] <= 3


async def test_what_is_there_already_is_not_recalled(stage: Stage) -> None:
    stage.world.dataset("p", blocks=2, delivered={0, 1})
    assert (await (await retrieve(stage)).ended()).status is Outcome.RETRIEVED
    assert stage.world.calls["request_recall"] == 0


async def test_single_files_are_restored_out_of_datablocks_that_are_recalled_like_all_others(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=3, delivered={1}, nearline={2})
    assert (await (await retrieve(stage, files_of=FILES)).ended()).status is Outcome.RETRIEVED
    assert held.delivered == {0, 1, 2}
    assert held.pins == {}
    assert stage.world.calls["restore_files"] >= 2
    assert stage.world.calls["copy_block"] == 0


async def test_a_dataset_that_cannot_be_retrieved_says_why(stage: Stage) -> None:
    stage.world.dataset("p")
    stage.world.fail("look_retrieval", "BeingArchived")
    outcome = await (await retrieve(stage)).ended()
    assert (outcome.status, outcome.error_class) == (Outcome.DATASET_ERROR, "BeingArchived")
    assert status(stage) == ("datasetRetrievalFailed", "BeingArchived: look_retrieval fails as told")


@pytest.mark.parametrize("step", ["request_recall", "await_recall", "copy_block", "restore_files"])
async def test_a_cancel_gives_every_pin_back(real: Stage, step: str) -> None:
    held = real.world.dataset("p", blocks=3, stuck={2})
    real.world.hold(step, deaf=True)
    dataset = await retrieve(real, files_of=FILES if step == "restore_files" else None)
    await real.world.reached(step)
    await dataset.cancel()
    await dataset.progress()
    real.world.let_go(step)
    assert (await dataset.ended()).status is Outcome.CANCELLED
    assert held.pins == {}
    assert status(real)[0] == "datasetRetrievalFailed"


async def test_a_cancel_while_pins_cannot_be_given_back_neither_hangs_nor_forgets_one(real: Stage) -> None:
    held = real.world.dataset("p", blocks=3)
    real.world.fail("release_recall", times=2)
    real.world.hold("copy_block:1")
    dataset = await retrieve(real)
    await real.world.until(lambda: real.world.calls["release_recall"] >= 1)
    await dataset.cancel()
    assert (await dataset.ended()).status is Outcome.CANCELLED
    assert held.pins == {}


async def test_a_cancel_during_the_last_word_comes_too_late(stage: Stage) -> None:
    stage.world.dataset("p")
    dataset = await retrieve(stage)
    stage.world.hold("release_recall", deaf=True)
    await stage.world.reached("release_recall")
    stage.world.hold("move_retrieve", deaf=True)
    stage.world.let_go("release_recall")
    await stage.world.reached("move_retrieve")
    await dataset.cancel()
    await dataset.progress()
    stage.world.let_go("move_retrieve")
    assert (await dataset.ended()).status is Outcome.RETRIEVED


async def test_an_error_of_the_user_gives_every_pin_back(real: Stage) -> None:
    held = real.world.dataset("p", blocks=3, stuck={2})
    real.world.fail("copy_block:1", "Incomplete")
    outcome = await (await retrieve(real)).ended()
    assert (outcome.status, outcome.error_class) == (Outcome.DATASET_ERROR, "Incomplete")
    assert held.pins == {}
    assert status(real) == ("datasetRetrievalFailed", "Incomplete: copy_block:1 fails as told")


async def test_a_parked_retrieval_has_no_pins_and_given_up_leaves_none(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=2)
    stage.world.fail("copy_block:1", "Damaged", final=True)
    dataset = await retrieve(stage)
    await dataset.phase(Phase.PARKED)
    await stage.world.until(lambda: not held.pins)
    await dataset.signal("give_up")
    outcome = await dataset.ended()
    assert (outcome.status, outcome.error_class) == (Outcome.GIVEN_UP, "Damaged")
    assert held.delivered == {0}


async def test_a_paused_retrieval_gives_its_pins_back_and_recalls_what_went_to_tape_meanwhile(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=3)
    stage.world.hold("copy_block")
    dataset = await retrieve(stage)
    await stage.world.reached("copy_block", 3)

    await dataset.signal("pause")
    await dataset.phase(Phase.PAUSED)
    await stage.world.until(lambda: not held.pins)
    held.nearline.add(1)
    stage.world.let_go("copy_block")
    await dataset.signal("resume")

    assert (await dataset.ended()).status is Outcome.RETRIEVED
    assert held.delivered == {0, 1, 2}
    assert held.pins == {}
    assert [order.positions.numbers for order in stage.world.asked("request_recall")] == [(0, 1, 2), (1,)]


async def test_blocks_that_do_not_come_within_a_week_leave_the_others_delivered(slow: Stage) -> None:
    held = slow.world.dataset("p", blocks=4, stuck={1, 2})
    outcome = await (await retrieve(slow)).ended()
    assert (outcome.status, outcome.error_class) == (Outcome.PARTIAL, "RecallFailed")
    assert outcome.undelivered == (1, 2)
    assert held.delivered == {0, 3}
    assert held.pins == {}, "what came too late is not kept on disk for us"
    assert status(slow)[0] == "datasetRetrievalFailed"
    assert "p#1: not recalled before the deadline" in outcome.message


async def test_a_retrieval_of_which_nothing_comes_has_failed(slow: Stage) -> None:
    held = slow.world.dataset("p", blocks=2, stuck={0, 1})
    assert (await (await retrieve(slow)).ended()).status is Outcome.FAILED
    assert held.pins == {}


async def test_a_recall_that_fails_is_asked_for_again(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=2, broken={1: 2})
    assert (await (await retrieve(stage)).ended()).status is Outcome.RETRIEVED
    assert stage.world.calls["request_recall"] == 3
    assert held.pins == {}


async def test_a_recall_that_fails_three_times_is_lost_and_the_others_are_delivered(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=2, broken={1: 3})
    outcome = await (await retrieve(stage)).ended()
    assert (outcome.status, outcome.undelivered) == (Outcome.PARTIAL, (1,))
    assert "the tape is torn" in outcome.message
    assert held.pins == {}


async def test_a_forgotten_recall_is_asked_for_again(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=2, forgotten=1)
    assert (await (await retrieve(stage)).ended()).status is Outcome.RETRIEVED
    assert held.pins == {}


async def test_recall_ready_looks_at_once_and_disturbs_no_copy(slow: Stage) -> None:
    slow.timing = Timing(poll_initial_s=3_600, poll_longest_s=3_600)
    held = slow.world.dataset("p", blocks=2, stuck={1})
    slow.world.hold("copy_block:0")
    dataset = await retrieve(slow)
    await slow.world.reached("copy_block")
    await slow.world.until(lambda: slow.world.calls["await_recall"] == 2)

    held.stuck.clear()
    await dataset.signal("recall_ready")

    await slow.world.until(lambda: held.delivered == {1})
    slow.world.let_go("copy_block:0")
    assert (await dataset.ended()).status is Outcome.RETRIEVED
    assert slow.world.cancelled["copy_block"] == 0


@pytest.mark.parametrize("button", ["recall_ready", "pause", "retry"])
async def test_a_poll_that_fails_while_it_is_interrupted_does_not_pass_for_the_deadline(
    real: Stage, button: str
) -> None:
    held = real.world.dataset("p", stuck={0})
    real.world.hold("await_recall", deaf=True)
    dataset = await retrieve(real)
    await real.world.reached("await_recall")
    await dataset.signal(button)
    await dataset.progress()
    real.world.let_go("await_recall")
    await real.world.until(lambda: real.world.running["await_recall"] == 0)
    held.stuck.clear()
    await dataset.signal("resume")
    assert (await dataset.ended()).status is Outcome.RETRIEVED


async def test_a_delivered_block_does_not_disturb_the_copies_of_others(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=6)
    stage.world.hold("copy_block:1")
    dataset = await retrieve(stage)
    await stage.world.until(lambda: len(held.delivered) == 5)
    stage.world.let_go("copy_block:1")
    assert (await dataset.ended()).status is Outcome.RETRIEVED
    assert stage.world.cancelled["copy_block"] == 0
    assert stage.world.calls["copy_block"] == 6


async def test_a_job_that_joins_a_cancelled_retrieval_is_taken_along(stage: Stage) -> None:
    held = stage.world.dataset("p", blocks=2)
    stage.world.hold("copy_block")
    stage.world.hold("move_retrieve", deaf=True)
    dataset = await retrieve(stage)
    await stage.world.reached("move_retrieve")
    stage.world.let_go("move_retrieve")
    await stage.world.reached("copy_block", 2)
    stage.world.hold("move_retrieve", deaf=True)
    await dataset.signal("leave", "1")
    await stage.world.reached("move_retrieve")
    dataset = await stage.join("p", "2", kind=RETRIEVE)
    stage.world.let_go("copy_block")
    stage.world.let_go("move_retrieve")
    assert (await dataset.ended()).status is Outcome.RETRIEVED
    assert held.pins == {}
    assert stage.world.outcome("2").status is Outcome.RETRIEVED
    assert ("1", 0) not in stage.world.state.outcomes_of


async def test_a_retrieval_of_many_blocks_stays_far_from_the_limit_of_histories(stage: Stage) -> None:
    blocks = 40
    stage.world.dataset("p", blocks=blocks)
    dataset = await retrieve(stage)
    await dataset.ended()
    history = await dataset.handle.fetch_history()
    assert len(history.events) <= 32 * blocks


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "two of 6,816 datablocks never come",
    "the others are delivered at once; partial at the deadline of seven days, with the names",
)
async def test_two_of_6816_datablocks_that_never_come_hold_nothing_up(slow: Stage) -> None:
    """As happened at CERN: two files were absent after fifteen days (dmwm/CRABServer#7900)."""
    slow.limits = Limits(blocks=200)
    blocks, stuck = 6_816, {7, 4_711}
    held = slow.world.dataset("p", blocks=blocks, stuck=stuck)
    dataset = await retrieve(slow)
    await slow.world.until(lambda: len(held.delivered) == blocks - 2, within_s=100)
    # The workflow still hears of the last thousands, which beside other tests takes its time.
    shown = await dataset.phase(Phase.RECALLING, within_s=60)
    assert shown.waiting_for == "the LTS to bring 2 datablocks back from tape"
    assert shown.states == {"delivered": blocks - 2, "recalling": 2}
    polls = slow.world.calls["await_recall"]

    outcome = await dataset.ended()

    assert (outcome.status, outcome.undelivered) == (Outcome.PARTIAL, (7, 4_711))
    assert all(f"p#{position}: not recalled before the deadline" in outcome.message for position in stuck)
    assert outcome.bytes == (blocks - 2) * 1_000
    assert held.pins == {}
    asked = [order.positions for order in slow.world.asked("request_recall")]
    assert [len(positions) for positions in asked[:35]] == [200] * 34 + [16]
    assert slow.world.calls["copy_block"] == blocks - 2
    assert slow.world.calls["await_recall"] - polls < 100, "a week of polls, the later ones hours apart"


async def test_a_retrieval_whose_history_is_full_goes_on_in_a_fresh_run(real: Stage) -> None:
    real.limits = Limits(blocks=3, history=150)
    held = real.world.dataset("p", blocks=60, delivered={0, 1}, stuck={50}, broken={7: 2, 8: 3}, nearline={9})
    dataset = await retrieve(real)
    await real.world.until(lambda: len(held.delivered) == 58)
    shown = await dataset.phase(Phase.RECALLING)
    assert shown.jobs == ("job/1",)
    assert shown.bytes_done == 56_000
    held.stuck.clear()

    outcome = await dataset.ended()

    assert (outcome.status, outcome.undelivered, outcome.bytes) == (Outcome.PARTIAL, (8,), 57_000)
    assert "p#8: the tape is torn" in outcome.message
    assert held.delivered == set(range(60)) - {8}
    assert held.pins == {}
    assert real.world.calls["look_retrieval"] == 1
    assert real.world.calls["copy_block"] == 57, "nothing is copied twice because of it"
    assert real.world.cancelled["copy_block"] == 0
    runs = await real.runs(dataset)
    assert len(runs) >= 3
    assert max(len(run.events) for run in runs) < 300


async def test_a_cancel_after_a_fresh_run_began_gives_every_pin_back(real: Stage) -> None:
    real.limits = Limits(blocks=3, history=60)
    held = real.world.dataset("p", blocks=20, stuck={19})
    real.world.hold("copy_block:18")
    dataset = await retrieve(real)
    await real.world.until(lambda: len(held.delivered) == 18)
    await dataset.cancel()
    assert (await dataset.ended()).status is Outcome.CANCELLED
    assert held.pins == {}
    assert len(await real.runs(dataset)) > 1


async def test_a_parked_datablock_does_not_keep_the_others_from_a_fresh_run(real: Stage) -> None:
    real.limits = Limits(blocks=2, history=100)
    held = real.world.dataset("p", blocks=30)
    real.world.fail("copy_block:0", final=True)
    dataset = await retrieve(real)
    await real.world.until(lambda: len(held.delivered) == 29)
    shown = await dataset.phase(Phase.PARKED)
    assert shown.waiting_for == "TapeUnavailable: copy_block:0 fails as told"
    await real.world.until(lambda: not held.pins)
    real.world.heal("copy_block:0")
    await dataset.signal("retry")
    assert (await dataset.ended()).status is Outcome.RETRIEVED
    assert held.pins == {}


async def test_pins_are_renewed_before_they_end_for_what_is_copied_and_what_waits_for_its_turn(real: Stage) -> None:
    real.timing = QUICK.model_copy(update={"pin_lifetime_s": 2.0})
    real.limits = Limits(blocks=1)
    held = real.world.dataset("p", blocks=3, stuck={2})
    real.world.hold("copy_block")
    dataset = await retrieve(real)
    await real.world.until(lambda: real.world.calls["request_recall"] >= 4)
    held.stuck.clear()
    real.world.let_go("copy_block")
    assert (await dataset.ended()).status is Outcome.RETRIEVED

    assert held.pins == {}
    asked = [(at, order.positions.numbers) for at, order in held.requested]
    assert [positions for _, positions in asked[:3]] == [(0, 1, 2), (0, 1), (0, 1)]
    gaps = [after[0] - before[0] for before, after in pairwise(asked)]
    assert max(gaps[:3]).total_seconds() < 2.0, "the next pin is there before the last one ends"
    steps = [name for name, _ in real.world.orders if name in ("request_recall", "release_recall")]
    assert steps[:3] == ["request_recall", "request_recall", "release_recall"]
    assert real.world.calls["copy_block"] == 3


async def test_a_long_wait_for_tape_renews_nothing(slow: Stage) -> None:
    slow.world.dataset("p", blocks=2, stuck={0, 1})
    dataset = await retrieve(slow)
    await dataset.ended()
    assert slow.world.calls["request_recall"] == 1
    assert len((await dataset.handle.fetch_history()).events) < 100


async def test_two_jobs_for_one_dataset_are_one_recall(real: Stage) -> None:
    held = real.world.dataset("p", blocks=2, stuck={0})
    await real.join("p", "1", kind=RETRIEVE)
    dataset = await real.join("p", "2", kind=RETRIEVE)
    await real.world.until(lambda: held.delivered == {1})
    await dataset.signal("leave", "1")
    assert held.pins, "somebody else still waits for it"
    held.stuck.clear()
    assert (await dataset.ended()).status is Outcome.RETRIEVED
    assert real.world.calls["request_recall"] == 1
    assert held.pins == {}
