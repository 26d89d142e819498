"""What an operator tells jobs and datasets that run, through the archiver's API, and which jobs there are."""

import getpass
from typing import Annotated

import typer
from rich.text import Text

from cli.catalogue import Document, Refused
from cli.client import EXIT_CODES, Connection, Json, connected, err, run, tell
from cli.following import JOB_ID
from domain.lifecycle import JobStatus, Phase
from domain.steering import JobList, JobSummary, Steered, Verb

_PAGE = 200

Subject = Annotated[str, typer.Argument(metavar="JOB|PID", help="A job's or a dataset's id.", show_default=False)]
Pid = Annotated[str, typer.Argument(metavar="PID", help="A dataset's id.", show_default=False)]
By = Annotated[str, typer.Option("--by", help="Who says so; your login name if not given.")]


def register(app: typer.Typer) -> None:
    """Add the operator's commands."""
    commands = {
        "jobs": jobs_command,
        "pause": pause_command,
        "resume": resume_command,
        "retry": retry_command,
        "give-up": give_up_command,
        "cancel": cancel_command,
    }
    for name, command in commands.items():
        app.command(name, epilog=EXIT_CODES, rich_help_panel="Operators")(command)


def jobs_command(
    phase: Annotated[Phase | None, typer.Option(help="Only jobs in this phase.")] = None,
    outcome: Annotated[JobStatus | None, typer.Option(help="Only jobs that ended so in SciCat.")] = None,
    owner: Annotated[str, typer.Option(help="Only jobs of this SciCat group.")] = "",
    running: Annotated[bool | None, typer.Option("--running/--ended", help="Only jobs that run, or do not.")] = None,
    limit: Annotated[int, typer.Option(help="List so many at most.", min=1)] = 50,
    as_json: Json = False,
) -> None:
    """List jobs, first those that run, then those that ended last: id, type, phase or end, owner group, start.

    A job is parked as soon as one of its datasets is: `status JOB` says which one, and why.

    \b
    Examples:
      scopemarchiver jobs --running
      scopemarchiver jobs --phase parked
      scopemarchiver jobs --outcome finishedUnsuccessful --owner group1 --limit 10
    """
    filters: dict[str, str | int] = {}
    filters |= {"phase": phase.value} if phase else {}
    filters |= {"outcome": outcome.value} if outcome else {}
    filters |= {"owner": owner} if owner else {}
    filters |= {} if running is None else {"running": str(running).lower()}
    found = run(_listed(connected("API_ENDPOINT"), filters, limit))
    lines = [_line(job) for job in found]
    if len(found) == limit:
        err.print(f"there may be more than {limit} (--limit)")
    if lines or as_json:
        tell({"jobs": [job.model_dump(mode="json") for job in found]}, "\n".join(lines), as_json=as_json)


async def _listed(connection: Connection, filters: dict[str, str | int], limit: int) -> list[JobSummary]:
    found: list[JobSummary] = []
    page = ""
    async with connection.api() as api:
        while len(found) < limit:
            answer = await api.jobs(**filters, limit=min(_PAGE, limit - len(found)), **({"page": page} if page else {}))
            listed = JobList.model_validate(answer)
            found += listed.jobs
            page = listed.next_page
            if not page:
                break
    return found


def _line(job: JobSummary) -> str:
    return f"{job.id}  {job.type:8}  {job.outcome or job.phase.value:25}  {job.owner_group or '-':12}  {job.started}"


def pause_command(subject: Subject, by: By = "", as_json: Json = False) -> None:
    """Pause a dataset, or all datasets of a job, for everybody who waits for them.

    Running copies stop at the next chunk, within seconds, and go on from there after `resume`.

    \b
    Examples:
      scopemarchiver pause 20.500.11935/0d4c… --by "Nadia, cache nearly full"
      scopemarchiver pause 5a3c8a52-9e0f-4a0c-b7a5-0f6f4c1f8c11
    """
    _steer(Verb.PAUSE, subject, by, as_json=as_json)


def resume_command(subject: Subject, as_json: Json = False) -> None:
    """Let a paused dataset, or all datasets of a paused job, go on.

    \b
    Examples:
      scopemarchiver resume 20.500.11935/0d4c…
      scopemarchiver resume 5a3c8a52-9e0f-4a0c-b7a5-0f6f4c1f8c11
    """
    _steer(Verb.RESUME, subject, as_json=as_json)


def retry_command(pid: Pid, as_json: Json = False) -> None:
    """Try again what a dataset is parked for, or is to try much later.

    \b
    Examples:
      scopemarchiver retry 20.500.11935/0d4c…
    """
    _steer(Verb.RETRY, pid, as_json=as_json)


def give_up_command(pid: Pid, as_json: Json = False) -> None:
    """End a parked dataset for all of its jobs, undoing what was done; refused once it is archived.

    \b
    Examples:
      scopemarchiver give-up 20.500.11935/0d4c…
    """
    _steer(Verb.GIVE_UP, pid, as_json=as_json)


def cancel_command(subject: Subject, as_json: Json = False) -> None:
    """Cancel a dataset for all of its jobs, or a job with those of its datasets that no other job waits for.

    What was done is undone, which takes a while. What is archived already stays archived: then it is too late.

    \b
    Examples:
      scopemarchiver cancel 20.500.11935/0d4c…
      scopemarchiver cancel 5a3c8a52-9e0f-4a0c-b7a5-0f6f4c1f8c11
    """
    _steer(Verb.CANCEL, subject, as_json=as_json)


def _steer(verb: Verb, subject: str, by: str = "", *, as_json: bool) -> None:
    answer = run(_told(connected("API_ENDPOINT"), verb, subject, by or getpass.getuser()))
    steered = Steered.model_validate(answer)
    now = {shown.workflow_id: shown.outcome or shown.phase for shown in steered.datasets}
    if steered.job:
        now[steered.job.workflow_id] = steered.job.phase
    for workflow_id, why in steered.left_alone.items():
        err.print(Text(f"{workflow_id} was left alone: {why}"), soft_wrap=True)
    lines = [f"{verb.value}: {workflow_id} is now {now.get(workflow_id, 'told')}" for workflow_id in steered.acted]
    tell(answer, "\n".join(lines), as_json=as_json)


async def _told(connection: Connection, verb: Verb, subject: str, by: str) -> Document:
    """Tell a job if the subject has a job's form, else, or if no job has that id, a dataset."""
    async with connection.api() as api:
        if JOB_ID.fullmatch(subject):
            try:
                return await api.steer_job(subject, verb.value)
            except Refused as unknown:  # a pid may be a bare UUID, too
                if unknown.status != 404:
                    raise
        return await api.steer_dataset(subject, verb.value, by)
