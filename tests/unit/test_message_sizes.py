"""What travels through Temporal stays small, whatever the dataset: 256 KB is where the server begins to complain."""

import pytest
from temporalio.contrib.pydantic import pydantic_data_converter

from activities.catalogue import Commit, Looked, RegisterBlocks, Standing
from activities.joining import WatchDatasets
from activities.landing_zone import Freed, PlannedDataset
from activities.reporting import DeliverOutcome
from activities.retrieval import Arrived, AwaitRecall, LookedRetrieval, RequestedRecall, RequestRecall
from activities.tape import UndoBlocks
from domain.bitmap import Bitmap
from domain.lifecycle import FoundLifecycle, JobType, Outcome, Phase
from domain.message import Message
from domain.orders import Subscriber
from domain.outcome import MAX_TEXT, DatasetOutcome
from domain.pid import MAX_PID_BYTES
from domain.progress import SHOWN, BlockProgress, DatasetProgress, JobDatasetProgress, JobProgress
from workflows.archive_dataset import ArchiveOrder, ArchiveState
from workflows.job import CarriedJob, JobState

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
PLANNED = PlannedDataset(plan_digest=DIGEST, blocks=BLOCKS, payload_bytes=1 << 60, unlisted=PATHS)
SAFE = Bitmap(bits="f" * (BLOCKS // 4 + 1))
RECALLS = {RECALL + str(first): tuple(range(first, first + 200)) for first in range(0, BLOCKS, 200)}
SHOWN_BLOCKS = tuple(BlockProgress(index=n, name="n" * 300, last_error="e" * 200) for n in range(SHOWN))

MESSAGES: list[Message] = [
    LOOKED,
    RegisterBlocks(pid=PID, plan_digest=DIGEST, generations=GENERATIONS),
    Commit(pid=PID, plan_digest=DIGEST, generations=GENERATIONS, found=FOUND),
    UndoBlocks(pid=PID, plan_digest=DIGEST, indices=ALL, generations=GENERATIONS, uploads=(UPLOAD,) * 16),
    LookedRetrieval(owner_group="g", blocks_key="k", blocks=BLOCKS, total_bytes=1, missing=ALL),
    RequestRecall(blocks_key="k", positions=ALL, pin_lifetime_s=1),
    RequestedRecall(recalls=RECALLS),
    AwaitRecall(blocks_key="k", recalls=RECALLS, poll_initial_s=1, poll_longest_s=1),
    Arrived(online=ALL),
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
            subscribers=SUBSCRIBERS, looked=LOOKED, planned=PLANNED, safe=SAFE, generations=dict.fromkeys(range(20), 1)
        ),
    ),
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
