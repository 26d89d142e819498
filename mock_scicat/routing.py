"""Express's idea of a path: case does not matter, %2F is no slash, a last slash is nothing."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_WORDS = {
    word.lower(): word
    for word in (
        *(
            "api",
            "v3",
            "v4",
            "datasets",
            "origdatablocks",
            "datablocks",
            "attachments",
            "jobs",
            "users",
            "auth",
            "policies",
            "health",
        ),
        *(
            "datasetlifecycle",
            "isValid",
            "count",
            "findOne",
            "fullquery",
            "fullfacet",
            "public",
            "datasetDetails",
            "my",
            "self",
            "identity",
        ),
        *("userIdentity", "login", "logout", "whoami"),
    )
}


def routed_path(raw_path: bytes) -> str:
    """The path that routes are matched against: still percent-encoded, with SciCat's words in their own case.

    Starlette matches on the decoded path, where a pid's %2F is a slash like any other. Kept encoded, a pid is one
    segment, and a pid with a raw slash matches no route, which is the 404 that Express gives. A segment's encoded
    letters are compared as they are, so only %2F and %2f are made alike.
    """
    segments = raw_path.decode("latin-1").split("/")
    path = "/".join(_WORDS.get(segment.lower(), segment) for segment in segments)
    return re.sub(r"(?<=.)/$", "", path)


class ScicatPaths:
    """ASGI middleware that puts `routed_path` in the place of the decoded path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under its routed path."""
        if scope["type"] == "http":
            raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
            scope = {**scope, "path": routed_path(raw_path)}
        await self._app(scope, receive, send)
