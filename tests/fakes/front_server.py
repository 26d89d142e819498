"""`python -m tests.fakes.front_server PORT`: the API as a process, with all that stands behind it pretended."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from tests.fakes.front import WHOLE, WHOLE_OBJECT, Front, head, settings


def application(port: int) -> FastAPI:
    """The API with its pretended world, in which one object was put whole."""
    front = Front()
    front.s3.objects[WHOLE_OBJECT] = head(WHOLE["parts"][0]["checksum_sha256"])
    app = create_app(
        settings(
            job_endpoint_username="operator",
            job_endpoint_password="word",
            scicat_ingestor_groups="group1",
            scicat_endpoint=f"http://127.0.0.1:{port}",
        )
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        app.state.services = front.services()
        yield

    @app.get("/api/v3/health", include_in_schema=False)
    async def scicat() -> str:  # pyright: ignore[reportUnusedFunction]
        return "ok"

    app.router.lifespan_context = lifespan
    return app


if __name__ == "__main__":
    uvicorn.run(application(int(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
