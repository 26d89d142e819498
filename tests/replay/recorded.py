"""Histories of workflows that ran, kept so that later code is held against them.

`make histories` runs the workflow tests with `RECORD_HISTORIES` naming a folder: of each workflow that ends there, one
history is kept for every distinct set of things that happened in it, so the tests' branches are the recorded branches.
"""

import base64
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from google.protobuf.json_format import MessageToDict
from temporalio.client import WorkflowHistory

FOLDER = Path(__file__).parent / "histories"
LARGEST = 400
"""Events of a history that is still worth its room."""

_NOT_KEPT = ("identity", "stackTrace")
"""Who ran it and where its code lay: nothing that a replay looks at."""

_PROCESS = re.compile(r"\d+@[\w.-]+")
"""How a worker names the queue of its own."""


def keep(histories: Iterable[WorkflowHistory]) -> None:
    """Keep those that show something new, if this process records."""
    folder = os.environ.get("RECORD_HISTORIES")
    if not folder:
        return
    for history in histories:
        if len(history.events) > LARGEST:
            continue
        kind = history.events[0].workflow_execution_started_event_attributes.workflow_type.name
        shown = hashlib.sha256(repr(sorted(features(history))).encode()).hexdigest()[:10]
        path = Path(folder) / f"{kind}-{shown}.json.gz"
        if not path.exists():
            text = json.dumps({"id": history.workflow_id, "history": _stripped(history.to_json_dict())})
            text = _PROCESS.sub("worker", text)
            # Without a time in its header the same history gives the same file.
            path.write_bytes(gzip.compress(text.encode(), mtime=0))


def load(path: Path) -> WorkflowHistory:
    """A history as it was kept."""
    kept = json.loads(gzip.decompress(path.read_bytes()))
    return WorkflowHistory.from_json(kept["id"], kept["history"])


def features(history: WorkflowHistory) -> set[str]:
    """What happened: kinds of events, each with the activity, signal, patch or error that it is about."""
    found: set[str] = set()
    for event in history.events:
        kind = event.WhichOneof("attributes") or ""
        found.add(kind)
        found |= {f"{kind}: {name}" for name in _subjects(MessageToDict(getattr(event, kind)))}
    return found


def _subjects(attributes: dict[str, Any]) -> set[str]:
    subjects: set[str] = set()
    if name := attributes.get("activityType", {}).get("name"):
        subjects.add(name)
    if name := attributes.get("signalName"):
        subjects.add(name)
    for payload in attributes.get("details", {}).get("patch-data", {}).get("payloads", ()):
        subjects.add(json.loads(base64.b64decode(payload["data"]))["id"])
    failure = attributes.get("failure")
    while failure:
        if name := failure.get("applicationFailureInfo", {}).get("type"):
            subjects.add(name)
        failure = failure.get("cause")
    return subjects


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {key: _stripped(held) for key, held in named.items() if key not in _NOT_KEPT}
    if isinstance(value, list):
        return [_stripped(held) for held in cast("list[Any]", value)]
    return value
