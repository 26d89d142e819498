"""Where the world is built: settings become clients, clients go into activities, activities onto task queues."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.worker import FixedSizeSlotSupplier, Interceptor, WorkerTuner

from activities.catalogue import CatalogueActivities
from activities.consistency import ConsistencyActivities
from activities.copying import buffers_per_copy
from activities.expiring import ExpiringActivities
from activities.joining import JoiningActivities
from activities.landing_zone import LandingZoneActivities
from activities.manifests import Manifests
from activities.reporting import ReportingActivities
from activities.restoring import RestoringActivities
from activities.retrieval import RetrievalActivities
from activities.tape import TapeActivities
from activities.uploading import UploadActivities
from clients.lts.filesystem import FilesystemStore
from clients.lts.http import HttpLongTermStore
from clients.lts.http_put import HttpPutStore
from clients.lts.protocol import LongTermStore
from clients.lts.residency import residency
from clients.s3 import ObjectStore
from clients.s3_bulk import BulkObjects
from clients.s3_small import SmallObjects
from clients.scicat import Catalogue
from clients.state import State
from clients.telemetry import Threads
from domain.errors import InfrastructureError
from settings import Settings, SettingsError
from worker.gauging import watch_space
from worker.streams import SharedStreams
from workflows import queues
from workflows.archive_dataset import ArchiveDataset
from workflows.archive_job import ArchiveJob
from workflows.landing_zone import LandingZone
from workflows.retrieve_dataset import RetrieveDataset
from workflows.retrieve_job import RetrieveJob
from workflows.upkeep import ConsistencyReport, ExpireRetrieved, ReconcileLandingZone, SweepRetrieved
from workflows.upload import Upload

_log = logging.getLogger("worker")

READERS = 16
"""Threads that read large members from the landing zone."""

WORKFLOWS: tuple[type, ...] = (
    *(ArchiveJob, RetrieveJob, ArchiveDataset, RetrieveDataset),
    *(Upload, LandingZone),
    *(ExpireRetrieved, SweepRetrieved, ReconcileLandingZone, ConsistencyReport),
)

WORKFLOW_TASKS = 16
"""Workflow tasks that one worker has in hand at once.

Each may hold several steps on the spot, and has ten seconds. Of a burst of datasets the others wait in Temporal's
queue, where nothing runs out; with the SDK's hundred at once all were late, and all were begun again (measured).
"""


def tuner(slots: FixedSizeSlotSupplier | SharedStreams) -> WorkerTuner:
    """What a worker has in hand at once: activities by its queue's slots, workflow tasks by `WORKFLOW_TASKS`."""
    others = FixedSizeSlotSupplier(100)  # the SDK's own number; steps on the spot are bounded by their workflow tasks
    return WorkerTuner.create_composite(
        workflow_supplier=FixedSizeSlotSupplier(WORKFLOW_TASKS),
        activity_supplier=slots,
        local_activity_supplier=others,
        nexus_supplier=others,
    )


@dataclass(frozen=True, slots=True)
class QueueWork:
    """What a worker on one queue does."""

    workflows: Sequence[type]
    activities: Sequence[Callable[..., Any]]
    slots: FixedSizeSlotSupplier | SharedStreams
    interceptors: Sequence[Interceptor] = ()


@asynccontextmanager
async def world(settings: Settings, client: Client, names: Sequence[str]) -> AsyncGenerator[dict[str, QueueWork]]:
    """Connect to everything, and say which queue does what; everything is closed on leaving.

    Args:
        settings: of this process.
        client: of Temporal.
        names: the queues that this process works on: their copies share its memory budget.
    """
    store = long_term_store(settings)
    catalogue = Catalogue(**settings.scicat_connection)
    s3 = settings.s3_connection
    bulk = BulkObjects(**s3)
    with Threads(READERS, thread_name_prefix="landing-zone") as readers:
        async with (
            ObjectStore.connect(**s3) as objects,
            ObjectStore.connect(**settings.s3_links) as links,
            SmallObjects.connect(**s3) as small,
        ):
            state = State(objects, settings.s3_state_bucket)
            watching = asyncio.create_task(
                watch_space(store, settings.lts_free_space_percentage, settings.metrics_interval_s)
                if settings.metrics_address and queues.CONTROL in names
                else asyncio.sleep(0)
            )
            try:
                await _check_versioning(objects, settings)
                buffers = _buffers(settings, names)
                work = _work(settings, client, store, catalogue, bulk, small, objects, links, state, readers, buffers)
                async with _sharing(settings, state, names) as shared:
                    yield work | {
                        name: replace(work[name], slots=streams, interceptors=(streams,))
                        for name, streams in shared.items()
                    }
            finally:
                watching.cancel()
                bulk.close()
                await store.aclose()
                await catalogue.aclose()


@asynccontextmanager
async def _sharing(settings: Settings, state: State, names: Sequence[str]) -> AsyncGenerator[dict[str, SharedStreams]]:
    """Share the streams of those of the queues that have a limit."""
    limits = {
        queues.ARCHIVAL: (settings.lts_write_streams, settings.archival_slots),
        queues.RETRIEVAL: (settings.lts_read_streams, settings.retrieval_slots),
    }
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(SharedStreams.sharing(state, name, limit=limit, slots=slots))
            for name, (limit, slots) in limits.items()
            if name in names and limit
        }


def long_term_store(settings: Settings) -> LongTermStore:
    """The driver that the settings choose; it connects to nothing yet."""
    if settings.lts_driver == "filesystem":
        assert settings.lts_path is not None  # noqa: S101 - the settings have checked it
        return FilesystemStore(
            root=settings.lts_path,
            residency=residency(settings.lts_residency),
            # Nobody comes back to an upload after the last retry and the end of parking; twice that, to be sure.
            upload_lifetime=2 * timedelta(hours=settings.archiver_retry_hours, days=settings.archiver_park_days),
        )
    driver = HttpPutStore if settings.lts_write == "put" else HttpLongTermStore
    return driver(
        endpoint=settings.lts_endpoint, token=settings.lts_token.get_secret_value() or None, ca_file=settings.ca_file
    )


def _buffers(settings: Settings, names: Sequence[str]) -> int:
    """Buffers for each copy, so that all copies of this process together keep to its memory budget."""
    slots = {queues.ARCHIVAL: settings.archival_slots, queues.RETRIEVAL: settings.retrieval_slots}
    copies = sum(slots.get(name, 0) for name in names)
    return buffers_per_copy(settings.archiver_memory_budget_mb * 2**20, copies)


async def _check_versioning(objects: ObjectStore, settings: Settings) -> None:
    """Refuse a landing zone that keeps no versions, since freeing it could lose what was overwritten meanwhile.

    Raises:
        SettingsError: it keeps none, and ARCHIVER_ALLOW_UNVERSIONED is not set.
    """
    bucket = settings.s3_landingzone_bucket
    try:
        versioning = await objects.versioning(bucket)
    except InfrastructureError as error:
        # It may come later than we do; the plan of every dataset looks again.
        _log.warning("the landing zone cannot be looked at yet: %s", error)
        return
    if versioning is not None and versioning != "Enabled" and not settings.archiver_allow_unversioned:
        raise SettingsError(
            [f"The bucket {bucket} keeps no versions: run `scopemarchiver setup`, or set ARCHIVER_ALLOW_UNVERSIONED."]
        )


def _work(
    settings: Settings,
    client: Client,
    store: LongTermStore,
    catalogue: Catalogue,
    bulk: BulkObjects,
    small: SmallObjects,
    objects: ObjectStore,
    links: ObjectStore,
    state: State,
    readers: Threads,
    buffers: int,
) -> dict[str, QueueWork]:
    scicat = CatalogueActivities(catalogue=catalogue, store=store, state=state)
    landing = LandingZoneActivities(
        catalogue=catalogue,
        objects=objects,
        landing_bucket=settings.s3_landingzone_bucket,
        state=state,
        allow_unversioned=settings.archiver_allow_unversioned,
        url_lifetime=timedelta(seconds=settings.url_expiration_seconds),
        client=client,
    )
    uploading = UploadActivities(
        catalogue=catalogue,
        objects=objects,
        landing_bucket=settings.s3_landingzone_bucket,
        state=state,
        client=client,
    )
    tape = TapeActivities(
        store=store,
        objects=bulk,
        small=small,
        landing_bucket=settings.s3_landingzone_bucket,
        state=state,
        readers=readers,
        buffers=buffers,
    )
    manifests = Manifests(
        store=store,
        catalogue=catalogue,
        state=state,
        smallest_chunk=settings.lts_chunk_bytes,
        buffers=buffers,
    )
    retention = timedelta(days=settings.retrieval_retention_days)
    retrieval = RetrievalActivities(
        catalogue=catalogue,
        store=store,
        objects=objects,
        bulk=bulk,
        retrieval_bucket=settings.s3_retrieval_bucket,
        retention=retention,
        state=state,
        client=client,
        manifests=manifests,
        buffers=buffers,
    )
    restoring = RestoringActivities(
        store=store,
        objects=objects,
        bulk=bulk,
        retrieval_bucket=settings.s3_retrieval_bucket,
        retention=retention,
        state=state,
        manifests=manifests,
        buffers=buffers,
    )
    joining = JoiningActivities(client=client, state=state)
    reporting = ReportingActivities(
        catalogue=catalogue,
        objects=objects,
        links=links,
        retrieval_bucket=settings.s3_retrieval_bucket,
        retention=retention,
        state=state,
        client=client,
        link_lifetime_s=settings.s3_url_expiration_days * 24 * 3600,
    )
    expiring = ExpiringActivities(
        objects=objects, retrieval_bucket=settings.s3_retrieval_bucket, state=state, client=client
    )
    consistency = ConsistencyActivities(
        catalogue=catalogue,
        store=store,
        objects=objects,
        landing_bucket=settings.s3_landingzone_bucket,
        retrieval_bucket=settings.s3_retrieval_bucket,
        state=state,
        client=client,
    )
    light = (
        scicat.open_job,
        scicat.report_job,
        scicat.look,
        scicat.move_archive,
        scicat.move_retrieve,
        scicat.register_blocks,
        scicat.unregister_blocks,
        scicat.commit,
        landing.plan_dataset,
        landing.free_dataset,
        tape.open_block,
        tape.await_tape,
        tape.loosen_block,
        tape.await_evicted,
        tape.recall_block,
        tape.await_recalled,
        tape.release_block,
        tape.undo_blocks,
        tape.remove_files,
        retrieval.look_retrieval,
        retrieval.request_recall,
        retrieval.await_recall,
        retrieval.release_recall,
        retrieval.name_blocks,
        joining.join_datasets,
        joining.watch_datasets,
        reporting.deliver_outcome,
        reporting.finish_job,
        expiring.expire_page,
        expiring.sweep_uploads,
        uploading.count_landing_zone,
        uploading.sweep_upload,
        uploading.close_upload,
        uploading.submit_archive,
        consistency.check_page,
        consistency.close_report,
    )
    reading = (tape.verify_block, retrieval.copy_block, restoring.restore_files)
    return {
        queues.CONTROL: QueueWork(WORKFLOWS, light, FixedSizeSlotSupplier(settings.control_slots)),
        queues.ARCHIVAL: QueueWork((), (tape.write_block,), FixedSizeSlotSupplier(settings.archival_slots)),
        queues.RETRIEVAL: QueueWork((), reading, FixedSizeSlotSupplier(settings.retrieval_slots)),
    }
