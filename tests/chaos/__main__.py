"""`python -m tests.chaos`: kill processes of a stack at random, round after round, and see that nothing is lost."""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.chaos.plan import Plan
from tests.chaos.rounds import Report, ring, round_of


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the first round; the next one has the next.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Keep the stack's data and logs here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on stdout.")] = False,
) -> None:
    """Archive and retrieve ten datasets in each round, while workers, API, LTS, SciCat, MinIO and Temporal are killed.

    Every process may be killed (-9) at any moment, sometimes two at once, and comes back on its data after a while.
    A seed says which, when and for how long. After each round everything is looked at: jobs, bytes, stores, SciCat.

    The exit code is 1 if anything was wrong in a round; what, and the round's plan, is said on stderr.

    Examples:

    python -m tests.chaos --rounds 50 --seed 0 --json

    python -m tests.chaos --rounds 1 --seed 17 --folder /tmp/chaos
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        reports = _rounds(folder or Path(temporary), range(seed, seed + rounds))
    if as_json:
        sys.stdout.write(json.dumps(summary(reports), indent=1) + "\n")
    raise typer.Exit(any(report.problems for report in reports))


def _rounds(folder: Path, seeds: range) -> list[Report]:
    reports: list[Report] = []
    with ring(folder) as where:
        for seed in seeds:
            report = asyncio.run(round_of(where, Plan.of(seed)))
            reports.append(report)
            sys.stderr.write(f"{report.seconds:.1f} s, {report}\n")
    return reports


def summary(reports: list[Report]) -> dict[str, Any]:
    """The figures of several rounds."""
    kills = sum((report.kills for report in reports), Counter[str]())
    seconds = sorted(report.seconds for report in reports)
    return {
        "seeds": [reports[0].plan.seed, reports[-1].plan.seed],
        "rounds": len(reports),
        "rounds_without_a_problem": sum(not report.problems for report in reports),
        "kills": kills.total(),
        "kills_by_process": dict(sorted(kills.items())),
        "pairs": sum(len(blow.victims) > 1 for report in reports for blow in report.struck),
        "blows_whose_place_never_came": sum(len(report.missed) for report in reports),
        "asked_for_again": sum(report.presses for report in reports),
        "ended_by_themselves_on_the_lts": sum(report.expired for report in reports),
        "seconds_a_round": {"median": round(seconds[len(seconds) // 2], 1), "longest": round(seconds[-1], 1)},
        "problems": {report.plan.seed: report.problems for report in reports if report.problems},
    }


if __name__ == "__main__":
    typer.run(main)
