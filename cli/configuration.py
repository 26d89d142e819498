"""`config` and `secrets`: what a process would be told, from where, and whether it could start so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import secret_files
from cli.client import FAILED, Json, fail
from cli.services import plainly
from settings import Settings, SettingsError
from settings.needs import Process, needed
from settings.origins import DEFAULT, origins
from settings.placeholders import known_to_everybody
from settings.sources import config_path, read_settings, secrets_folder

EXIT_CODES = "Exit codes: 0 all is well; 1 something is wrong, and said."


def register(app: typer.Typer) -> None:
    """Add `config` and `secrets`."""
    group = typer.Typer(no_args_is_help=True, help="The settings that count here, and what is wrong with them.")
    group.command("show", epilog=EXIT_CODES)(show_command)
    group.command("check", epilog=EXIT_CODES)(check_command)
    app.add_typer(group, name="config", rich_help_panel="Service")
    files = typer.Typer(no_args_is_help=True, help="Passwords and keys as files, one a setting.")
    files.command("init", epilog=EXIT_CODES)(init_command)
    # With a single command typer would leave out its name.
    files.callback()(lambda: None)
    app.add_typer(files, name="secrets", rich_help_panel="Service")


def show_command(
    given: Annotated[bool, typer.Option("--given", help="Leave out what nobody has set.")] = False,
    as_json: Json = False,
) -> None:
    """Show every setting with the value that counts and where it is from: environment, a file, or the default.

    Secrets are masked. A setting that follows another one has its value: S3_EXTERNAL_ENDPOINT that of S3_ENDPOINT.

    \b
    Examples:
      scopemarchiver config show --given
      SECRETS_DIR=secrets scopemarchiver config show --json
      docker compose --env-file .production.env run --rm api scopemarchiver config show
    """
    with plainly():
        settings = read_settings()
        values: dict[str, Any] = settings.model_dump(mode="json")  # masks secrets
        shown = [
            {"name": name.upper(), "value": values[name], "origin": origin}
            for name, origin in origins().items()
            if not (given and origin == DEFAULT)
        ]
        files = {"config_file": config_path(), "secrets_folder": secrets_folder()}
    if as_json:
        told = {name: str(path) if path else None for name, path in files.items()}
        print(json.dumps(told | {"settings": shown}, ensure_ascii=False))
        return
    rows = [("SETTING", "VALUE", "ORIGIN"), *((row["name"], _text(row["value"]), row["origin"]) for row in shown)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        print(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


def check_command(
    process: Annotated[
        list[Process] | None,
        typer.Option("--for", help="Only what this process needs; repeatable.", show_default="all"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether the service could start with these settings, and of each that is wrong what is wrong with it.

    Wrong are values that cannot be, names that are none, in production passwords that everybody knows.

    And accounts that are missing, without which the API, the workers or the set-up do not start.

    Nothing is dialled, and no secret is shown.

    \b
    Examples:
      scopemarchiver config check
      SECRETS_DIR=secrets scopemarchiver config check --for api --for worker
    """
    processes = tuple(process or Process)
    environment = None
    try:
        settings = read_settings()
        environment = settings.environment
        wrong = problems(settings, processes)
    except SettingsError as error:
        wrong = list(error.sentences)
    if as_json:
        told = {"well": not wrong, "environment": environment, "processes": processes, "problems": wrong}
        print(json.dumps(told, ensure_ascii=False))
    elif wrong:
        print("\n".join(wrong))
    else:
        print(f"All is well for {', '.join(processes)} in {environment}.")
    if wrong:
        raise typer.Exit(FAILED)


def problems(settings: Settings, processes: tuple[Process, ...]) -> list[str]:
    """A sentence for each reason for which one of the processes would not start."""
    wrong = known_to_everybody(settings) if settings.in_production else []
    wanted: dict[str, list[Process]] = {}
    for process in processes:
        for name in needed(settings, process):
            wanted.setdefault(name, []).append(process)
    for name, by in wanted.items():
        try:
            settings.require(name)
        except SettingsError as error:
            wrong += [f"{error} Needed by: {', '.join(by)}."]
    return wrong


def init_command(
    folder: Annotated[Path, typer.Argument(help="Where to; made if it is not there.")] = Path("secrets"),
    development: Annotated[
        bool, typer.Option("--development", help="Invent what the pretend SciCat, LTS and identity provider know, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make what is missing of a deployment's secrets: random passwords, and empty files for those you are given.

    What is there is never changed, so this may be run again at any time. No secret is printed.

    Whoever may enter the folder may read them all: it is made for its owner alone.

    \b
    Examples:
      scopemarchiver secrets init
      scopemarchiver secrets init /etc/scopemarchiver/secrets --json
      scopemarchiver secrets init --development
    """
    try:
        made = secret_files.make(folder, development=development)
        open_to_others = bool(folder.stat().st_mode & 0o077)
    except OSError as error:
        fail(f"{error.filename or folder} cannot be written: {error.strerror}", FAILED)
    if as_json:
        told = {"folder": str(folder), "open_to_others": open_to_others, "written": made.written, "kept": made.kept}
        print(json.dumps(told | {"to_fill_in": made.to_fill_in}, ensure_ascii=False))
        return
    _list(f"Written to {folder}:", dict.fromkeys(made.written, ""))
    _list("Kept as they were:", dict.fromkeys(made.kept, ""))
    _list("Empty, to be filled in by you:", made.to_fill_in)
    print("With an S3 of your own, s3_user, s3_password, s3_link_user and s3_link_password are its accounts.")
    print("A registry that wants an account gets it from `docker login`; no file here is for it.")
    if open_to_others:
        print(f"Others on this machine may enter the folder: chmod 700 {folder}")


def _list(sentence: str, names: Mapping[str, str]) -> None:
    if names:
        print(sentence, *(f"  {name:<24}{what}".rstrip() for name, what in names.items()), sep="\n")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "(empty)" if value in (None, "") else str(value)
