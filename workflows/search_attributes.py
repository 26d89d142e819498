"""Typed search attributes; `scopemarchiver setup` registers them, workflows upsert them."""

from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey, SearchAttributeUpdate

DATASET_PID = SearchAttributeKey.for_keyword("DatasetPid")
OWNER_GROUP = SearchAttributeKey.for_keyword("OwnerGroup")
PHASE = SearchAttributeKey.for_keyword("Phase")
OUTCOME = SearchAttributeKey.for_keyword("Outcome")
SCICAT_JOB_ID = SearchAttributeKey.for_keyword_list("ScicatJobId")
TOTAL_BYTES = SearchAttributeKey.for_int("TotalBytes")

ALL: tuple[SearchAttributeKey[Any], ...] = (DATASET_PID, OWNER_GROUP, PHASE, OUTCOME, SCICAT_JOB_ID, TOTAL_BYTES)


def upsert(*updates: SearchAttributeUpdate[Any]) -> None:
    """Set attributes of the running workflow; each call is an event of its history."""
    if updates:
        workflow.upsert_search_attributes(updates)  # pyright: ignore[reportUnknownMemberType] - typed so by the SDK
