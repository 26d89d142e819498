"""From settings to the order that a job is started with; a running job keeps what it was started with."""

from domain.lifecycle import JobType
from domain.orders import JobOrder, Limits, Packing, Timing, VerifyPolicy, Writing
from settings import Settings

_DAY = 24 * 3600


def job_order(settings: Settings, job_id: str, job_type: JobType) -> JobOrder:
    """The order for a job by today's settings."""
    return JobOrder(
        job_id=job_id,
        type=job_type,
        timing=Timing(
            retry_s=settings.archiver_retry_hours * 3600,
            retry_initial_s=settings.archiver_retry_initial_s,
            park_s=settings.archiver_park_days * _DAY,
            heartbeat_s=settings.heartbeat_timeout_s,
            poll_initial_s=min(1.0, settings.lts_poll_s),
            poll_longest_s=settings.lts_poll_s,
            recall_deadline_s=settings.recall_deadline_days * _DAY,
            migration_deadline_s=settings.migration_deadline_days * _DAY,
            pin_lifetime_s=settings.lts_pin_lifetime_s,
            second_look_s=settings.archiver_second_look_s,
            watch_s=settings.watch_interval_s,
        ),
        packing=Packing(
            target_bytes=settings.datablock_target_bytes,
            target_files=settings.archiver_target_files,
            smallest_chunk=settings.lts_chunk_bytes,
        ),
        writing=Writing(
            verify=VerifyPolicy(settings.verify_policy), free_space_percentage=settings.lts_free_space_percentage
        ),
        limits=Limits(window=settings.job_window),
    )
