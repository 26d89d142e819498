"""The tables of statuses, cell by cell, as the design page has them."""

import pytest

from domain.lifecycle import (
    ArchiveMoment,
    FoundLifecycle,
    JobStatus,
    Outcome,
    RetrieveMoment,
    archive_fields,
    finished,
    job_status,
    retrieve_fields,
)

FOUND = FoundLifecycle(archivable=False, retrievable=True, archive_status="scheduledForArchiving")


@pytest.mark.parametrize(
    ("moment", "fields"),
    [
        (
            ArchiveMoment.START,
            {"archiveStatusMessage": "started", "archivable": False, "archiveReturnMessage": {"message": ""}},
        ),
        (
            ArchiveMoment.DATASET_ERROR,
            {
                "archiveStatusMessage": "missingFilesError",
                "archivable": True,
                "retrievable": True,
                "archiveReturnMessage": {"message": "why"},
            },
        ),
        (
            ArchiveMoment.FAILURE,
            {
                "archiveStatusMessage": "scheduleArchiveJobFailed",
                "archivable": True,
                "retrievable": True,
                "archiveReturnMessage": {"message": "why"},
            },
        ),
        (
            ArchiveMoment.CANCELLED,
            {
                "archiveStatusMessage": "scheduledForArchiving",
                "archivable": False,
                "retrievable": True,
                "archiveReturnMessage": {"message": "why"},
            },
        ),
        (
            ArchiveMoment.COMMITTED,
            {
                "archiveStatusMessage": "datasetOnArchiveDisk",
                "archivable": False,
                "retrievable": True,
                "archiveReturnMessage": {"message": "why"},
            },
        ),
        (ArchiveMoment.FREED, {"isOnCentralDisk": False}),
    ],
)
def test_each_moment_of_an_archive_writes_the_fields_of_its_row(
    moment: ArchiveMoment, fields: dict[str, object]
) -> None:
    assert archive_fields(moment, FOUND, "why") == fields


def test_all_moments_of_an_archive_have_a_row() -> None:
    for moment in ArchiveMoment:
        assert archive_fields(moment, FOUND)


@pytest.mark.parametrize("retrievable", [False, True])
def test_a_started_that_no_run_stands_behind_counts_as_never_started(retrievable: bool) -> None:
    stale = FoundLifecycle(archivable=False, retrievable=retrievable, archive_status="started")
    assert stale.without_stale_start() == FoundLifecycle(
        archivable=True, retrievable=retrievable, archive_status="datasetCreated"
    )
    assert FOUND.without_stale_start() == FOUND


@pytest.mark.parametrize(
    ("moment", "status"),
    [
        (RetrieveMoment.START, "started"),
        (RetrieveMoment.RETRIEVED, "datasetRetrieved"),
        (RetrieveMoment.FAILED, "datasetRetrievalFailed"),
    ],
)
def test_a_retrieval_never_touches_archivable_and_retrievable(moment: RetrieveMoment, status: str) -> None:
    assert retrieve_fields(moment, "why") == {
        "retrieveStatusMessage": status,
        "retrieveReturnMessage": {"message": "why"},
    }


GOOD, ERROR, FAILED = Outcome.ARCHIVED, Outcome.DATASET_ERROR, Outcome.FAILED


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([GOOD], JobStatus.SUCCESSFUL),
        ([GOOD, Outcome.ALREADY_ARCHIVED, Outcome.RETRIEVED], JobStatus.SUCCESSFUL),
        ([GOOD, ERROR], JobStatus.WITH_DATASET_ERRORS),
        ([GOOD, FAILED], JobStatus.WITH_DATASET_ERRORS),
        ([GOOD, Outcome.CANCELLED], JobStatus.WITH_DATASET_ERRORS),
        ([ERROR, ERROR], JobStatus.WITH_DATASET_ERRORS),
        ([Outcome.PARTIAL], JobStatus.WITH_DATASET_ERRORS),
        ([Outcome.PARTIAL, FAILED], JobStatus.WITH_DATASET_ERRORS),
        ([ERROR, FAILED], JobStatus.UNSUCCESSFUL),
        ([FAILED], JobStatus.UNSUCCESSFUL),
        ([Outcome.GIVEN_UP], JobStatus.UNSUCCESSFUL),
        ([Outcome.CANCELLED], JobStatus.UNSUCCESSFUL),
        ([], JobStatus.UNSUCCESSFUL),
    ],
)
def test_a_job_ends_as_its_datasets_did(outcomes: list[Outcome], status: JobStatus) -> None:
    assert job_status(outcomes) is status
    assert job_status(outcomes, cancelled=True) is JobStatus.UNSUCCESSFUL


def test_a_finished_job_is_known_by_its_status() -> None:
    assert [status for status in JobStatus if finished(status)] == list(JobStatus)[1:]
    assert not finished("jobSubmitted")
