"""What a datablock on the LTS has to be: from the state bucket, else read from the tar itself, once."""

import asyncio
from dataclasses import dataclass
from typing import Any

from activities.copying import Buffers, digest_tar, read_through
from activities.progress import Bookmark, in_thread
from clients.lts.protocol import FileAbsent, LongTermStore
from clients.scicat import Catalogue
from clients.state import State
from domain import names
from domain.checking import ChunkDigests, Expected, Fault, check_listed
from domain.datablock import chunk_bytes_for
from domain.errors import Damaged
from domain.manifest import Manifest, load_manifest
from domain.names import stem_of
from domain.rebuilding import PlanUnknown, TarDamaged, identify, rebuild_manifest
from domain.tarreader import TarContents, TarReader


@dataclass(frozen=True, slots=True)
class Digests:
    """How a tar is cut into chunks, and their raw sha256."""

    tar_bytes: int
    chunk_bytes: int
    chunks: tuple[bytes, ...]


class Manifests:
    """Holds the LTS, the catalogue and the state bucket."""

    def __init__(
        self, *, store: LongTermStore, catalogue: Catalogue, state: State, smallest_chunk: int, buffers: int
    ) -> None:
        self._store, self._catalogue, self._state = store, catalogue, state
        self._smallest_chunk, self._buffers = smallest_chunk, buffers

    async def digests(self, entry: dict[str, Any], bookmark_index: int) -> Digests:
        """The chunks of a datablock as `look_retrieval` lists it, bag or not.

        Raises:
            Damaged: the tar is not what it says of itself, or what the catalogue says of it.
            Nearline, FileAbsent: of the store.
        """
        if entry["bagged"]:
            manifest = await self.of(entry, bookmark_index)
            return Digests(manifest.tar_bytes, manifest.chunk_bytes, manifest.chunks)
        return await self._digests_of_plain_tar(entry, bookmark_index)

    async def of(self, entry: dict[str, Any], bookmark_index: int) -> Manifest:
        """The manifest of a bag of ours; one that the state bucket lost is made anew from the tar, and kept.

        Raises:
            Damaged: the tar is not what it says of itself.
            Nearline, FileAbsent: of the store.
        """
        pid, archive_id = str(entry["pid"]), str(entry["archive_id"])
        if entry["plan_digest"]:
            known = await self._state.manifest(pid, entry["plan_digest"], stem_of(archive_id))
            if known:
                return known
        size = await self._size(archive_id)
        chunk_bytes = chunk_bytes_for(size, self._smallest_chunk)
        contents, chunks = await self._read(archive_id, size, chunk_bytes, bookmark_index)
        try:
            plan = await asyncio.to_thread(identify, contents)
            if plan.chunk_bytes != chunk_bytes:
                # It was written with another setting than today's: read again, for chunks of its own size.
                buffers, bookmark = Buffers(self._buffers, size), Bookmark(bookmark_index, size)
                chunks = await in_thread(
                    lambda: digest_tar(self._store, archive_id, size, plan.chunk_bytes, buffers, bookmark), bookmark
                )
            data = await asyncio.to_thread(rebuild_manifest, contents, plan, chunks)
        except (PlanUnknown, TarDamaged) as error:
            raise Damaged(f"{archive_id} has no manifest, and none can be made of it: {error}") from error
        await self._state.put_manifest(pid, names.REBUILT, stem_of(archive_id), data)
        return load_manifest(data)

    async def _digests_of_plain_tar(self, entry: dict[str, Any], bookmark_index: int) -> Digests:
        """A tar that the original system made: its members have to be those that SciCat lists."""
        pid, archive_id = str(entry["pid"]), str(entry["archive_id"])
        size = await self._size(archive_id)
        chunk_bytes = chunk_bytes_for(size)
        contents, chunks = await self._read(archive_id, size, chunk_bytes, bookmark_index)
        listed = {
            file.path: Expected(file.size)
            for block in await self._catalogue.datablocks(pid)
            if block.archive_id == archive_id
            for file in block.files
        }
        wrong = [found for found in check_listed(contents, listed) if found.fault is not Fault.EXTRA]
        if wrong:
            raise Damaged(f"{archive_id} is not what SciCat lists ({len(wrong)} findings): {wrong[0].sentence}")
        return Digests(size, chunk_bytes, tuple(chunks))

    async def _read(
        self, archive_id: str, size: int, chunk_bytes: int, bookmark_index: int
    ) -> tuple[TarContents, list[bytes]]:
        """Read a tar once, front to back: what is in it, and the digests of its chunks."""
        reader, chunks = TarReader(), ChunkDigests(chunk_bytes)
        buffers, bookmark = Buffers(self._buffers, size), Bookmark(bookmark_index, size)

        def take(run: memoryview) -> None:
            reader.feed(run)
            chunks.feed(run)

        await in_thread(lambda: read_through(self._store, archive_id, size, take, buffers, bookmark), bookmark)
        return reader.finish(), chunks.finish()

    async def _size(self, archive_id: str) -> int:
        there = await self._store.stat(archive_id)
        if there is None:
            raise FileAbsent(archive_id)
        return there.size_bytes
