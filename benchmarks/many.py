"""A thousand datasets of one small file each: what control costs, since hardly a byte moves."""

import asyncio
import shutil
from collections.abc import Sequence

from benchmarks.material import File
from benchmarks.site import JobFailed, Site
from domain.names import job_workflow, raw_prefix

FILE = File("a.bin", 1 << 10)
JOB_DATASETS = 1_000
"""The most that one job of these benchmarks names."""


async def landed(site: Site, count: int) -> list[str]:
    """Register so many datasets and put their files into the landing zone; return their pids.

    All files go by one rclone run: a thousand runs would take longer than all the rest.
    """
    pids = [await site.register([FILE]) for _ in range(count)]
    tree = site.work / "tree"
    content = bytes(FILE.size)
    for pid in pids:
        path = tree / raw_prefix(pid) / FILE.path
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    await site.rclone.place(tree, site.rclone.at(site.settings.s3_landingzone_bucket))
    await asyncio.to_thread(shutil.rmtree, tree)
    return pids


async def submitted(site: Site, kind: str, pids: Sequence[str]) -> list[str]:
    """Submit jobs of up to `JOB_DATASETS` datasets; return their ids."""
    return [
        await site.user.create_job(kind, pids[start : start + JOB_DATASETS])
        for start in range(0, len(pids), JOB_DATASETS)
    ]


async def ended(site: Site, jobs: Sequence[str]) -> None:
    """Wait for the end of all jobs.

    Raises:
        JobFailed: one did not end well.
    """
    for job in jobs:
        await site.temporal.get_workflow_handle(job_workflow(job)).result()
        status = (await site.user.job(job))["jobStatusMessage"]
        if status != "finishedSuccessful":
            raise JobFailed(f"a job of {JOB_DATASETS:,} datasets ended as {status}")
