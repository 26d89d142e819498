"""Runs a case: one pass in which everything is counted, then ours and the peers in turn."""

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import Case, NotAvailable
from benchmarks.peers import Times
from benchmarks.proc import disk_written_bytes, highest_memory_mib
from benchmarks.results import Row
from benchmarks.site import Site, Took, opened, settle
from benchmarks.traffic import Traffic, counted


async def measure(case: Case, folder: Path, *, repeats: int, scale: float, tell: Callable[[str], None]) -> list[Row]:
    """Run a case on a stack of its own and return a row for each peer.

    Args:
        case: not used before.
        folder: where stack and files lie meanwhile; does not exist.
        repeats: timed runs; a case that says `once` has none beside the counted pass.
        scale: what sizes were multiplied with; only noted.
        tell: told what happens now.

    Raises:
        JobFailed, CommandFailed, StackError: there is nothing to report.
    """
    tell("starting a stack")
    async with opened(folder) as site:
        tell("making the material")
        await case.prepare(site)
        written_before = disk_written_bytes(site.stack)
        await case.before(site)
        tell("counting")
        try:
            async with counted(site) as traffic:
                took = [await case.ours(site)]
        except NotAvailable as error:
            return [Row(case=case.name, title=case.title, note=f"not available: {error}"[:300], scale=scale)]
        times: list[Times] = []
        if not case.once:
            took.clear()
            for n in range(repeats):
                await case.before(site)
                tell(f"run {n + 1} of {repeats}: the peers")
                times.append(await case.beside(site))
                tell(f"run {n + 1} of {repeats}: ours")
                await settle()
                took.append(await case.ours(site))
        scratch = disk_written_bytes(site.stack) - written_before
        return _rows(case, took, times, traffic, site, max(0, scratch), scale)


def _rows(
    case: Case, took: list[Took], times: list[Times], traffic: Traffic, site: Site, scratch: int, scale: float
) -> list[Row]:
    ours_s = statistics.median(run.seconds for run in took)
    names = list(times[0]) if times else []
    rows: list[Row] = []
    for peer in names or [""]:
        peer_s = statistics.median(run[peer] for run in times) if peer else None
        budget = case.budgets.get(peer)
        rows.append(
            Row(
                case=case.name,
                title=case.title,
                ours_s=round(ours_s, 3),
                bulk_s=round(statistics.median(run.bulk_s for run in took), 3),
                peer=peer or None,
                peer_s=None if peer_s is None else round(peer_s, 3),
                ratio=None if peer_s is None else round(ours_s / peer_s, 3),
                bar=budget.bar if budget else None,
                goal=budget.goal if budget else None,
                payload_bytes=case.payload_bytes,
                bytes_read_source=traffic.s3_sent[site.settings.s3_landingzone_bucket],
                bytes_written_lts=traffic.lts_received,
                bytes_read_lts=traffic.lts_sent,
                scratch_bytes=scratch,
                worker_max_rss_mib=round(max(highest_memory_mib(site.stack).values(), default=0.0), 1) or None,
                cpu_s={name: round(statistics.median(run.cpu_s[name] for run in took), 2) for name in took[0].cpu_s},
                foreign=round(max(run.foreign for run in took), 2),
                ours_runs_s=tuple(round(run.seconds, 3) for run in took),
                peer_runs_s=tuple(round(run[peer], 3) for run in times) if peer else (),
                scale=scale,
                calls={**dict(sorted(traffic.s3_calls.items())), **traffic.lts_calls},
            )
        )
    return rows
