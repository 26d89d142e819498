"""A landing zone that keeps no versions is freed when nobody can upload any more; the upload hears of it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities.landing_zone import FreeDataset, LandingZoneActivities
from clients.s3 import ObjectHead, ObjectVersion
from domain import names
from domain.planfile import DatasetPlan, Marker
from domain.progress import UploadProgress
from domain.uploads import UploadPhase

PID, ETAG = "20.500/1", "e" * 32
KEY = names.raw_key(PID, "folder/")
HOURS_AGO = datetime.now(UTC) - timedelta(hours=3)
LONG_AGO = (datetime.now(UTC) - timedelta(minutes=61)).isoformat()


@dataclass
class Upload:
    """The dataset's upload, as a handle of it answers; None: Temporal does not know it."""

    urls_until: str | None = ""
    signals: list[str] = field(default_factory=list[str])

    async def query(self, *_: Any, **__: Any) -> UploadProgress:
        self._known()
        return UploadProgress(pid=PID, phase=UploadPhase.FINALIZED, urls_until=self.urls_until or "")

    async def signal(self, name: str, *, args: Sequence[object]) -> None:
        assert not args
        self._known()
        self.signals.append(name)

    def _known(self) -> None:
        if self.urls_until is None:
            raise RPCError("not found", RPCStatusCode.NOT_FOUND, b"")

    def get_workflow_handle(self, workflow_id: str) -> "Upload":
        assert workflow_id == names.upload_workflow(PID)
        return self


@dataclass
class Stores:
    """The state bucket with one plan, and the landing zone with the one object of it."""

    deleted: list[str] = field(default_factory=list[str])

    async def plan(self, pid: str, digest: str, *, pinned: bool) -> DatasetPlan:
        return DatasetPlan(
            pid=pid,
            blocks=(),
            smallest_chunk=1,
            unlisted=(),
            differing_in_case=(),
            markers=(Marker("folder/", ETAG, None),),
        )

    async def versioning(self, bucket: str) -> str:
        return "Off"

    async def list_versions(self, bucket: str, prefix: str) -> AsyncIterator[ObjectVersion]:
        yield ObjectVersion(KEY, "null", 0, ETAG, HOURS_AGO, is_latest=True, delete_marker=False)

    async def head(self, bucket: str, key: str) -> ObjectHead:
        return ObjectHead(0, ETAG, HOURS_AGO, None, None)

    async def delete_objects(self, bucket: str, keys: list[str]) -> None:
        self.deleted += keys


async def free(upload: Upload, stores: Stores) -> None:
    landing = LandingZoneActivities(
        catalogue=cast("Any", None),
        objects=cast("Any", stores),
        landing_bucket="landingzone",
        state=cast("Any", stores),
        allow_unversioned=True,
        client=cast("Any", upload),
    )
    await ActivityEnvironment().run(landing.free_dataset, FreeDataset(pid=PID, plan_digest="d"))


@pytest.mark.parametrize("minutes", [30, -30])
async def test_nothing_goes_until_an_hour_after_the_last_url_has_ended(minutes: float) -> None:
    upload = Upload((datetime.now(UTC) + timedelta(minutes=minutes)).isoformat())
    stores = Stores()
    with pytest.raises(ApplicationError) as waits:
        await free(upload, stores)
    assert waits.value.type == "NotYet"
    assert (stores.deleted, upload.signals) == ([], [])


@pytest.mark.parametrize("until", [LONG_AGO, "", None], ids=["long ago", "no URL", "no upload"])
async def test_then_it_goes_and_the_upload_hears_of_it(until: str | None) -> None:
    upload, stores = Upload(until), Stores()
    await free(upload, stores)
    assert stores.deleted == [KEY]
    assert upload.signals == ([] if until is None else ["freed"])
