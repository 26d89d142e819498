"""The cases: what is put into place, what is timed, which peers stand beside it, and what the design asks of it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks import peers
from benchmarks.material import File, files, noise, write
from benchmarks.site import JobFailed, Site, Took
from domain.names import raw_key, stem_of

MIB = 1 << 20
GIB = 1 << 30


class NotAvailable(Exception):
    """The service cannot do yet what the case is about; a sentence."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What is demanded and what is hoped for: times the peer's seconds, or seconds where there is no peer."""

    bar: float
    goal: float


@dataclass
class Case:
    """Base of all cases; an instance is used for one stack."""

    name: str
    title: str
    files: Sequence[File]
    budgets: Mapping[str, Budget] = field(default_factory=dict[str, Budget])
    """By peer; `""` where there is none."""
    once: bool = False
    """Too long to be repeated: counted and timed in the same pass."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)

    async def prepare(self, site: Site) -> None:
        """Make what all runs share; untimed."""

    async def before(self, site: Site) -> None:
        """Put into place what the next run of ours uses up; untimed."""

    async def beside(self, site: Site) -> peers.Times:
        """Run the peers once, on what `before` has put into place."""
        return {}

    async def ours(self, site: Site) -> Took:
        """Run ours once.

        Raises:
            JobFailed: it did not end well.
            NotAvailable: it cannot be done yet.
        """
        raise NotImplementedError


@dataclass
class Archive(Case):
    """From the landing zone to tape, read back and compared, and out of the landing zone."""

    small: bool = False
    streamed: bool = False
    """Made on the way into the landing zone, since the disk would have to hold it once more."""
    peered: bool = True
    _pid: str = field(default="", init=False)

    async def prepare(self, site: Site) -> None:
        """Make the files."""
        if not self.streamed:
            await asyncio.to_thread(write, site.work / "files", self.files)

    async def before(self, site: Site) -> None:
        """A new dataset, in the landing zone."""
        self._pid = await site.register(self.files)
        if self.streamed:
            bucket = site.settings.s3_landingzone_bucket
            for seed, file in enumerate(self.files):
                target = site.rclone.at(bucket, raw_key(self._pid, file.path))
                await site.rclone.stream(noise(file.size, seed), file.size, target)
        else:
            await site.rclone.place(site.work / "files", site.raw(self._pid))

    async def beside(self, site: Site) -> peers.Times:
        """Copy the very same objects to disk and digest them."""
        if not self.peered:
            return {}
        fetch = peers.fetch_and_digest_small if self.small else peers.fetch_and_digest
        return await fetch(site.rclone, site.raw(self._pid), site.work / "peer")

    async def ours(self, site: Site) -> Took:
        """Archive."""
        return await site.run("archive", self._pid)


@dataclass
class Retrieve(Case):
    """From the LTS's disk cache into the retrieval bucket, compared with its digests."""

    _pid: str = field(default="", init=False)

    async def prepare(self, site: Site) -> None:
        """Archive once."""
        folder = site.work / "files"
        await asyncio.to_thread(write, folder, self.files)
        self._pid = await site.register(self.files)
        await site.rclone.place(folder, site.raw(self._pid))
        await site.run("archive", self._pid)

    async def before(self, site: Site) -> None:
        """Nothing of it in the retrieval bucket."""
        await site.rclone.empty(site.retrieved(self._pid))

    async def beside(self, site: Site) -> peers.Times:
        """The same bytes from the local disk into the same MinIO: as files, and as the tar that is on the LTS."""
        tars = site.work / "tar"
        for block in await site.user.datablocks(self._pid):
            await _download(site, str(block["archiveId"]), tars)
        return await peers.upload(site.rclone, site.work / "files", tars)

    async def ours(self, site: Site) -> Took:
        """Retrieve."""
        return await site.run("retrieve", self._pid)


@dataclass
class Restore(Retrieve):
    """One file out of a datablock, without the rest of it."""

    wanted: str = ""

    async def beside(self, site: Site) -> peers.Times:
        """There is no peer."""
        return {}

    async def ours(self, site: Site) -> Took:
        """Retrieve one file by its path."""
        try:
            took = await site.run("retrieve", self._pid, [self.wanted])
        except JobFailed as error:
            raise NotAvailable(str(error)) from error
        if not any(event.subject == "restore_files" for event in took.events):
            raise NotAvailable("the job ended well, but whole datablocks were copied")
        return took


def everyday(scale: float) -> list[Case]:
    """The cases of every run."""
    large = files(8, _bytes(128 * MIB, scale))
    small = files(_count(2_000, scale), 64 << 10, folders=20)
    one = File("single/one.bin", MIB)
    return [
        Archive(
            "archive-large",
            f"archive {_described(large)}, verified",
            large,
            {peers.COPY_SHA256SUM: Budget(0.9, 0.75)},
        ),
        Archive(
            "archive-small",
            f"archive {_described(small)}, verified",
            small,
            {peers.SMALL_SHA256SUM: Budget(1.2, 0.7)},
            small=True,
        ),
        Archive(
            "archive-tiny",
            "archive 1 x 1 KiB, verified",
            files(1, 1 << 10),
            {"": Budget(1.0, 0.5)},
            peered=False,
        ),
        Retrieve(
            "retrieve",
            f"retrieve {_described(large)}",
            large,
            {peers.UPLOAD_16_MIB: Budget(1.1, 0.9)},
        ),
        Restore(
            "restore-one",
            f"restore 1 MiB out of a datablock of {_size(sum(file.size for file in large))}",
            (*large, one),
            wanted=one.path,
        ),
    ]


def extreme(scale: float) -> list[Case]:
    """The cases of a full run, for memory and scratch: once each, without a peer."""
    huge = files(1, _bytes(20 * GIB, scale))
    big = files(1, _bytes(4 * GIB, scale))
    many = files(_count(100_000, scale), 1 << 10, folders=100)
    return [
        _once("archive-4-gib", big, streamed=True),
        _once("archive-20-gib", huge, streamed=True),
        _once("archive-100000", many, streamed=False),
    ]


def _once(name: str, listed: Sequence[File], *, streamed: bool) -> Case:
    title = f"archive {_described(listed)}, verified"
    return Archive(name, title, listed, once=True, peered=False, streamed=streamed)


async def _download(site: Site, path: str, folder: Path) -> None:
    """Bring a file of the LTS to the local disk, once."""
    target = folder / f"{stem_of(path)}.tar"
    if await asyncio.to_thread(target.exists):
        return
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    url = f"{site.settings.lts_endpoint}/files/{path}"
    async with site.http.stream("GET", httpx.URL(url), headers=site.lts_headers) as answer:
        answer.raise_for_status()
        tar = await asyncio.to_thread(target.open, "wb")
        with tar:
            async for piece in answer.aiter_bytes(MIB):
                tar.write(piece)


def _bytes(size: int, scale: float) -> int:
    return max(MIB, round(size * scale))


def _count(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def _described(listed: Sequence[File]) -> str:
    return f"{len(listed):,} x {_size(listed[0].size)}"


def _size(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"
