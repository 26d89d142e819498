"""The API's document, written to `docs/reference/openapi.yaml` by `python -m tests.openapi` (`make openapi`)."""

from pathlib import Path

import yaml

from api.app import create_app
from settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "openapi.yaml"

_HEAD = "# Made by `make openapi` from the API itself; a test says so when it is stale.\n"


def document() -> str:
    """The document, whatever the settings of this machine."""
    account = dict.fromkeys(("job_endpoint_username", "job_endpoint_password", "s3_user", "s3_password"), "x")
    app = create_app(Settings.model_validate(account | {"environment": "development"}))
    return _HEAD + yaml.safe_dump(app.openapi(), sort_keys=False, allow_unicode=True, width=110)


if __name__ == "__main__":
    PAGE.write_text(document())
