"""What travels through Temporal stays small, whatever the dataset: 256 KB is where the server begins to complain."""

from datetime import UTC, datetime

import pytest
from temporalio.contrib.pydantic import pydantic_data_converter

from activities.catalogue import Commit, Looked, RegisterBlocks, Standing
from activities.joining import WatchDatasets
from activities.landing_zone import Freed, PlannedDataset
from activities.reporting import DeliverOutcome
from activities.retrieval import FAILURES_TOLD, Arrived, AwaitRecall, LookedRetrieval, RequestRecall
from activities.tape import UndoBlocks
from domain.bitmap import Bitmap
from domain.lifecycle import FoundLifecycle, JobType, Outcome, Phase
from domain.message import Message
from domain.orders import Subscriber
from domain.outcome import MAX_TEXT, DatasetOutcome
from domain.pid import MAX_PID_BYTES
from domain.progress import SHOWN, BlockProgress, DatasetProgress, JobDatasetProgress, JobProgress
from domain.reservations import Claim, Counted, Hold, Reservations
from domain.uploads import LandingZoneOrder
from workflows.carried import ArchiveOrder, ArchiveState, CarriedJob, JobState, RetrieveOrder, RetrieveState
from workflows.retrieve_dataset import REASON_LENGTH, REASONS_KEPT

BLOCKS, DATASETS = 1_500, 1_000
ALL = tuple(range(1, BLOCKS + 1))
PID = "x" * 45
"""20.500.11935/ and a UUID are 49; that the longest are four times as long is not what jobs of 1,000 are made of."""
DIGEST, UPLOAD, RECALL = "d" * 64, "u" * 100, "r" * 40
PATHS = tuple("p" * 940 for _ in range(20))
GENERATIONS = dict.fromkeys(ALL, 1)
FOUND = FoundLifecycle()
OUTCOME = DatasetOutcome(
    pid="x" * MAX_PID_BYTES, status=Outcome.FAILED, message="m" * MAX_TEXT, leftovers=PATHS, unlisted=PATHS
)
SUBSCRIBERS = tuple(Subscriber(job_id="j" * 36, n=n, windowed=True) for n in range(DATASETS))
LOOKED = Looked(
    owner_group="g", found=FOUND, standing=Standing.COMMITTED, generations=GENERATIONS, unverified=ALL, off_tape=ALL
)
PLANNED = PlannedDataset(plan_digest=DIGEST, blocks=BLOCKS, files=1 << 40, payload_bytes=1 << 60, unlisted=PATHS)
SAFE = Bitmap(bits="f" * (BLOCKS // 4 + 1))
RECALLS = {RECALL + str(first): Bitmap.of(range(first, first + 200)) for first in range(0, BLOCKS, 200)}
NOW = datetime.now(UTC)
HOLD = Hold(granted=1 << 45, found=1 << 45, ticket="t" * 32, since=NOW)
SHOWN_BLOCKS = tuple(BlockProgress(index=n, name="n" * 300, last_error="e" * 200) for n in range(SHOWN))

MESSAGES: list[Message] = [
    LOOKED,
    RegisterBlocks(pid=PID, plan_digest=DIGEST, generations=GENERATIONS),
    Commit(pid=PID, plan_digest=DIGEST, generations=GENERATIONS, found=FOUND),
    UndoBlocks(pid=PID, plan_digest=DIGEST, indices=ALL, generations=GENERATIONS, uploads=(UPLOAD,) * 16),
    LookedRetrieval(owner_group="g", blocks_key="k", blocks=BLOCKS, total_bytes=1, missing=Bitmap.of(ALL)),
    RequestRecall(blocks_key="k", positions=Bitmap.of(ALL), pin_lifetime_s=1),
    AwaitRecall(blocks_key="k", recalls=RECALLS, poll_initial_s=1, poll_longest_s=1),
    Arrived(online=Bitmap.of(ALL), failed=dict.fromkeys(range(FAILURES_TOLD), "f" * 200)),
    PLANNED,
    Freed(leftovers=PATHS),
    OUTCOME,
    DeliverOutcome(outcome=OUTCOME, subscribers=SUBSCRIBERS),
    WatchDatasets(job_id="j", type=JobType.ARCHIVE, datasets=dict.fromkeys(range(DATASETS), PID), interval_s=1),
    DatasetProgress(
        pid=PID, kind="archive", phase=Phase.WRITING, blocks=SHOWN_BLOCKS, jobs=("job/" + "j" * 36,) * DATASETS
    ),
    JobProgress(
        id="j",
        type="archive",
        phase=Phase.WRITING,
        datasets=tuple(JobDatasetProgress(pid=PID, message="m" * 1_000) for _ in range(SHOWN)),
    ),
    ArchiveOrder(
        pid=PID,
        state=ArchiveState(
            subscribers=SUBSCRIBERS,
            looked=LOOKED,
            planned=PLANNED,
            written=SAFE,
            verified=SAFE,
            on_tape=SAFE,
            generations=dict.fromkeys(range(20), 1),
        ),
    ),
    LandingZoneOrder(
        reservations=Reservations(
            holds={
                f"{PID}{n}": Hold(granted=1 << 45, found=1 << 45, ticket="t" * 32, since=NOW) for n in range(DATASETS)
            }
        )
    ),
    Counted(since=NOW, claims={f"{PID}{n}": Claim(granted=1 << 45, found=1 << 45) for n in range(DATASETS)}),
    CarriedJob(
        job_id="j",
        type=JobType.ARCHIVE,
        state=JobState(open=dict.fromkeys(range(DATASETS), PID), done=SAFE, idle=tuple(range(DATASETS))),
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
async def test_a_message_about_1500_datablocks_or_1000_datasets_fits(message: Message) -> None:
    [payload] = await pydantic_data_converter.encode([message])
    assert len(payload.data) < 256_000


async def test_what_a_retrieval_of_6816_datablocks_carries_into_a_fresh_run_is_less_than_64_kb() -> None:
    every = Bitmap.of(range(6_816))
    spread = {RECALL + str(first): Bitmap.of(range(first, first + 200)) for first in range(0, 6_800, 200)}
    state = RetrieveState(
        subscribers=SUBSCRIBERS[:100],
        looked=LookedRetrieval(
            owner_group="g", blocks_key="k" * 100, blocks=6_816, total_bytes=1 << 60, missing=Bitmap()
        ),
        open=every,
        ready=every,
        recalls=spread,
        pinned_since=dict.fromkeys(spread, datetime.now(UTC)),
        asked={2: every, 3: every},
        lost=every,
        reasons=dict.fromkeys(range(REASONS_KEPT), "r" * REASON_LENGTH),
    )
    [payload] = await pydantic_data_converter.encode([RetrieveOrder(pid=PID, state=state)])
    assert len(payload.data) < 64_000
