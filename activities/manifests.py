"""Manifests of datablocks on the LTS: from the state bucket, else made anew from the tar itself."""

from typing import Any

from activities.progress import Bookmark
from clients.state import State
from domain.errors import TapeUnavailable
from domain.manifest import Manifest
from domain.names import stem_of


class Manifests:
    """Holds the state bucket."""

    def __init__(self, *, state: State) -> None:
        self._state = state

    async def known(self, entry: dict[str, Any]) -> Manifest | None:
        """The manifest of a datablock as listed by `look_retrieval`, None if the state bucket has none."""
        if not entry["plan_digest"]:
            return None
        return await self._state.manifest(entry["pid"], entry["plan_digest"], stem_of(str(entry["archive_id"])))

    async def of(self, entry: dict[str, Any], bookmark: Bookmark) -> Manifest:
        """The manifest of a datablock."""
        manifest = await self.known(entry)
        if manifest is None:
            raise TapeUnavailable(f"the manifest of {entry['archive_id']} is gone from the state bucket")
        return manifest
