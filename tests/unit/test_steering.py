"""When a verb has no effect, and what of a workflow is said when only Temporal's `describe` is there to ask."""

import pytest

from api.describing import dataset_with_steps
from domain.lifecycle import Outcome, Phase
from domain.progress import BlockProgress, DatasetProgress, JobProgress, StepProgress, dataset_details, job_details
from domain.steering import Verb, dataset_refusal, job_refusal


def dataset(phase: Phase = Phase.WRITING, **more: object) -> DatasetProgress:
    return DatasetProgress.model_validate({"pid": "p", "kind": "archive", "phase": phase, **more})


def job(phase: Phase = Phase.WRITING, **more: object) -> JobProgress:
    return JobProgress.model_validate({"id": "1", "type": "archive", "phase": phase, **more})


ENDED = dataset(Phase.DONE, outcome=Outcome.ARCHIVED, committed=True, ending=True)
COMMITTED = dataset(Phase.FREEING, committed=True)
PARKED = dataset(Phase.PARKED)
PARKED_COMMITTED = dataset(Phase.PARKED, committed=True)
PARKED_UNDOING = dataset(Phase.PARKED, ending=True)
CANCELLED = dataset(Phase.UNDOING, ending=True, cancelled_by="an operator cancelled it")

P, R, T, G, C = Verb.PAUSE, Verb.RESUME, Verb.RETRY, Verb.GIVE_UP, Verb.CANCEL


@pytest.mark.parametrize(
    ("shown", "refused"),
    [
        (dataset(), {G: "not parked but writing"}),
        (dataset(Phase.PAUSED), {G: "not parked but paused"}),
        (PARKED, {}),
        (PARKED_COMMITTED, dict.fromkeys((G, C), "too late, already archived")),
        (PARKED_UNDOING, dict.fromkeys((P, G, C), "too late: it is about to end")),
        (COMMITTED, dict.fromkeys((G, C), "too late, already archived")),
        (CANCELLED, dict.fromkeys((P, G), "too late: it is about to end")),
        (ENDED, dict.fromkeys(Verb, "already ended: archived")),
        (dataset(Phase.DONE, note="it was terminated"), dict.fromkeys(Verb, "already ended: it was terminated")),
    ],
)
def test_a_verb_is_refused_where_it_would_have_no_effect(shown: DatasetProgress, refused: dict[Verb, str]) -> None:
    for verb in Verb:
        why = dataset_refusal(shown, verb)
        assert bool(why) is (verb in refused), (verb, why)
        assert why.startswith(refused.get(verb, ""))


def test_a_job_can_be_cancelled_until_it_reports() -> None:
    assert [job_refusal(job(), verb) for verb in (P, R, C)] == ["", "", ""]
    assert job_refusal(job(reporting=True), C).startswith("too late")
    assert job_refusal(job(reporting=True, cancelled=True), C) == ""
    assert job_refusal(job(Phase.DONE, status="finishedSuccessful"), P) == "already ended: finishedSuccessful"


def step(**more: object) -> StepProgress:
    return StepProgress.model_validate({"name": "write_block", **more})


def test_bytes_attempts_and_errors_of_running_steps_are_joined_to_their_datablocks() -> None:
    blocks = tuple(
        BlockProgress(index=n, state="writing", bytes_total=10, bytes_done=done) for n, done in ((1, 0), (2, 10))
    )
    told = dataset(blocks=blocks, bytes_done=10, bytes_total=20)
    steps = [step(block=1, bytes_done=4, attempt=3, last_error="Busy: later"), step(block=2, bytes_done=2), step()]

    shown = dataset_with_steps(told, steps, "")

    assert [(b.bytes_done, b.attempt, b.last_error) for b in shown.blocks] == [(4, 3, "Busy: later"), (10, 1, "")]
    assert (shown.bytes_done, shown.bytes_total, len(shown.steps)) == (14, 20, 3)


def test_without_the_workflows_word_the_running_steps_show_their_datablocks() -> None:
    shown = dataset_with_steps(dataset(), [step(block=7, bytes_done=4, bytes_total=9)], "")
    assert [(b.index, b.bytes_done, b.bytes_total) for b in shown.blocks] == [(7, 4, 9)]
    assert shown.bytes_done == 4


@pytest.mark.parametrize(
    ("phase", "waiting_for", "said"),
    [
        (Phase.WAITING_TAPE, "the LTS to write", "x.tar is DISK"),
        (Phase.RECALLING, "", "x.tar is DISK"),
        (Phase.PARKED, "Damaged: y.tar", "Damaged: y.tar"),
    ],
)
def test_what_a_poll_says_is_more_exact_but_for_what_waits_for_a_person(
    phase: Phase, waiting_for: str, said: str
) -> None:
    told = dataset(phase, waiting_for=waiting_for, since="2026-01-02T03:04:05Z")
    shown = dataset_with_steps(told, [], "x.tar is DISK")
    assert shown.waiting_for == said
    if not waiting_for:
        assert shown.waiting_since == told.since


def test_the_details_name_the_phase_the_datablocks_and_the_reason() -> None:
    waiting = dataset(
        Phase.WAITING_TAPE,
        since="2026-01-02",
        waiting_for="a drive",
        blocks_total=3,
        states={"on_tape": 1, "waiting_tape": 2},
    )
    text = dataset_details(waiting)
    assert text.splitlines() == [
        "- archive of `p`",
        "- **waiting tape** since 2026-01-02",
        "- waits for: a drive",
        "- 3 datablocks: 1 on tape, 2 waiting tape",
    ]
    many = job(
        Phase.PARKED,
        status="inProgress",
        datasets_total=30,
        datasets_open=20,
        datasets_parked=1,
        outcomes={"archived": 10},
        datasets=[{"pid": f"p/{n}", "phase": "parked", "message": "why"} for n in range(20)],
    )
    lines = job_details(many).splitlines()
    assert lines[:4] == [
        "- archive job `1`",
        "- **parked** inProgress",
        "- 30 datasets: 20 open, 1 parked, 10 archived",
        "- `p/0` parked: why",
    ]
    assert len(lines) == 13
