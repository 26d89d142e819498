"""What the API does when Temporal has too much to do, is away, or refuses: it asks again, or says why not."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from api import uploads
from api.uploads import Uploads
from domain.errors import AlreadyFinalized, InfrastructureError, Misconfigured, UnsafePath, WorkflowUnanswered
from tests.fakes.front import settings

FULL = RPCError(
    "limit on number of concurrent in-flight updates has been reached", RPCStatusCode.RESOURCE_EXHAUSTED, b""
)
STOPPED = RPCError("Update failed: workflow update was aborted", RPCStatusCode.UNAVAILABLE, b"")
AWAY = RPCError("connection refused", RPCStatusCode.UNAVAILABLE, b"")
DENIED = RPCError("no", RPCStatusCode.PERMISSION_DENIED, b"")


@dataclass
class PretendTemporal:
    """Answers updates with what it was given, the last for ever; knows no workflow."""

    answers: list[Any]
    updates: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def get_workflow_handle(self, workflow_id: str) -> None:
        """Whatever `describe` is given."""

    async def execute_update_with_start_workflow(self, update: str, *, id: str, **_: Any) -> Any:  # noqa: A002
        self.updates.append((update, id))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class PretendBucket:
    """There, or not."""

    state: str | None = "Enabled"

    async def versioning(self, bucket: str) -> str | None:
        return self.state


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_LONGEST_PAUSE_S", 0)
    monkeypatch.setattr(uploads, "_DONE_WITHIN_S", 0.5)

    async def unknown(*_: Any) -> None:
        return None

    monkeypatch.setattr(uploads, "describe", unknown)


def over(*answers: Any, bucket: str | None = "Enabled") -> tuple[Uploads, PretendTemporal]:
    temporal = PretendTemporal(list(answers))
    made = Uploads(
        client=cast("Any", temporal),
        gateway=cast("Any", None),
        objects=cast("Any", PretendBucket(bucket)),
        settings=settings(),
    )
    return made, temporal


async def test_whoever_is_one_too_many_asks_again_with_the_same_update() -> None:
    api, temporal = over(*[FULL, STOPPED] * 10, None)
    await api.abort("a")
    assert len(temporal.updates) == 21
    assert len(set(temporal.updates)) == 1


async def test_a_request_for_room_asks_again_with_the_same_ticket() -> None:
    api, temporal = over(FULL, STOPPED, SimpleNamespace(granted=False))
    assert not await api.request("a", 1)
    assert len(temporal.updates) == 3
    assert len(set(temporal.updates)) == 1


async def test_a_server_that_is_away_is_not_asked_for_ever() -> None:
    api, temporal = over(AWAY)
    with pytest.raises(RPCError):
        await api.abort("a")
    assert 1 < len(temporal.updates) < 20
    api, temporal = over(DENIED)
    with pytest.raises(RPCError):
        await api.abort("a")
    assert len(temporal.updates) == 1


async def test_whoever_gets_no_answer_in_time_is_told_so() -> None:
    api, _ = over(FULL)
    with pytest.raises(WorkflowUnanswered, match="ask again later"):
        await api.abort("a")


@pytest.mark.parametrize(("kind", "error"), [("AlreadyFinalized", AlreadyFinalized), ("Unheard", InfrastructureError)])
async def test_a_refusal_keeps_its_name_and_its_words(kind: str, error: type[Exception]) -> None:
    api, _ = over(WorkflowUpdateFailedError(ApplicationError("kept", type=kind)))
    with pytest.raises(error, match="kept"):
        await api.abort("a")


async def test_without_a_bucket_nobody_is_promised_anything() -> None:
    api, temporal = over(None, bucket=None)
    with pytest.raises(Misconfigured, match="scopemarchiver setup"):
        await api.request("a", 1)
    assert temporal.updates == []


async def test_an_unsafe_pid_reaches_no_workflow() -> None:
    api, temporal = over(None)
    for asked in (api.abort("../a"), api.admit_urls("../a"), api.request("../a", 1)):
        with pytest.raises(UnsafePath):
            await asked
    assert temporal.updates == []
