"""The `scopemarchiver` command: every sub-command is registered here and lives in the module of its subject."""

import typer

from cli import client, configuration, datablock, demo, local, orphans, reconcile, services, steering, upload

app = typer.Typer(
    name="scopemarchiver",
    help="Moves scientific datasets from the landing zone to tape and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
services.register(app)
configuration.register(app)
local.register(app)
client.register(app)
upload.register(app)
steering.register(app)
orphans.register(app)
reconcile.register(app)
datablock.register(app)
demo.register(app)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
