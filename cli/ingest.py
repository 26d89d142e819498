"""From a folder to a dataset: look at the files, put them into the landing zone, register them in SciCat.

    scan ──► create dataset (not archivable yet) ──► upload ──► register files ──► archivable

Only the last step lets anybody archive it, so an upload that broke off can never be archived by halves.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import stat
import unicodedata
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.catalogue import OutOfReach, Refused, UserCatalogue, foreign
from domain.errors import UnsafePath
from domain.files import check_path, format_time
from domain.names import raw_key

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

MAX_PATH_BYTES = 940
"""S3 ends a key at 1,024 bytes; this leaves room for the prefix with a pid that holds a UUID."""

FILES_PER_BLOCK = 20_000
"""SciCat refuses a body above 16 MB; the Ingestor stops at the same number."""

ATTEMPTS = 4
"""Of a request to S3."""

AT_ONCE = 16
_LARGE_AT_ONCE = 3
_PART_BYTES = 16 << 20
"""Files above this go up in parts; at most 3 files of 2 parts are in memory then, below it at most 16 files."""

_MILLISECOND_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file and the path it has in the dataset."""

    source: Path
    path: str
    size: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Remark:
    """Something in the folder that is not uploaded, and why."""

    path: str
    reason: str


@dataclass(slots=True)
class Inventory:
    """What a folder holds."""

    files: list[SourceFile] = field(default_factory=list[SourceFile])
    skipped: list[Remark] = field(default_factory=list[Remark])
    """Left out; the rest can go up."""
    refused: list[Remark] = field(default_factory=list[Remark])
    """The archiver would refuse the whole dataset because of these."""

    @property
    def size_bytes(self) -> int:
        """Bytes in all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class LandingZone:
    """Where and as whom to upload."""

    url: str
    key: str
    secret: str = field(repr=False)
    region: str
    bucket: str


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def scan(folder: Path, *, prefix: str = "", leave_out: frozenset[str] = frozenset()) -> Inventory:
    """Find every regular file below `folder`, in order of names, and say of all else why it stays behind.

    Args:
        folder: where to look; links in it are not followed.
        prefix: put before every path, e.g. `session/`.
        leave_out: names of folders that are passed over in silence.
    """
    found = Inventory()
    _scan(folder, prefix, leave_out, found)
    found.files.sort(key=lambda file: file.path)
    _refuse_twins(found)
    return found


def _scan(folder: Path, prefix: str, leave_out: frozenset[str], found: Inventory) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        found.refused.append(Remark(shown(prefix) or ".", f"the folder cannot be read: {error.strerror}"))
        return
    if not entries and prefix:
        found.skipped.append(Remark(shown(prefix), "an empty folder (the archive keeps files only)"))
    for entry in entries:
        path = prefix + entry.name
        if not _is_utf8(entry.name):
            found.skipped.append(Remark(shown(path), "its name is not UTF-8, which neither SciCat nor S3 can hold"))
        elif entry.is_dir(follow_symlinks=False):
            if entry.name not in leave_out:
                _scan(Path(entry.path), f"{path}/", leave_out, found)
        else:
            _look_at(entry, path, found)


def _look_at(entry: os.DirEntry[str], path: str, found: Inventory) -> None:
    facts = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "no regular file")
        found.skipped.append(Remark(shown(path), f"{kind} (only regular files are archived)"))
    elif reason := _objection(path):
        found.refused.append(Remark(shown(path), reason))
    elif not os.access(entry.path, os.R_OK):
        found.refused.append(Remark(shown(path), "you may not read it"))
    else:
        found.files.append(
            SourceFile(
                Path(entry.path), path, facts.st_size, facts.st_mtime_ns, facts.st_mode, facts.st_uid, facts.st_gid
            )
        )


def _objection(path: str) -> str:
    """Why the archiver would refuse this name, or nothing."""
    try:
        check_path(path)
    except UnsafePath as unsafe:
        return str(unsafe)
    size = len(path.encode())
    return f"the path has {size} bytes, S3 allows {MAX_PATH_BYTES}" if size > MAX_PATH_BYTES else ""


def _refuse_twins(found: Inventory) -> None:
    """Two names that differ in their Unicode form only are one name on a Mac, so the archiver refuses them."""
    seen: dict[str, str] = {}
    for file in found.files:
        form = unicodedata.normalize("NFC", file.path)
        if form in seen:
            found.refused.append(Remark(shown(file.path), f"differs from {shown(seen[form])} in its Unicode form only"))
        seen[form] = file.path


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a byte that is no UTF-8 comes from os.scandir as half a surrogate
        return False
    return True


def shown(path: str) -> str:
    """A path that can stand in a message: what a terminal could not show or would obey is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in path)


def dataset_body(inventory: Inventory, *, name: str, source: str, user: str, email: str, group: str) -> dict[str, Any]:
    """Body of SciCat's POST datasets, for a raw dataset whose files are still on their way."""
    newest = max(file.mtime_ns for file in inventory.files)
    return {
        "type": "raw",
        "datasetName": name,
        "owner": user,
        "ownerGroup": group,
        "accessGroups": [],
        "contactEmail": email,
        "principalInvestigator": user,
        "creationLocation": "/archiver/ingest",
        "creationTime": datetime.fromtimestamp(newest / 1e9, UTC).isoformat(),
        "sourceFolder": source,
        "datasetlifecycle": {"archivable": False, "archiveStatusMessage": "filesNotYetAvailable"},
    }


async def ingest(
    inventory: Inventory,
    body: dict[str, Any],
    *,
    catalogue: UserCatalogue,
    zone: LandingZone,
    on_dataset: Callable[[str], None],
    on_file: Callable[[SourceFile], None],
) -> str:
    """Upload and register everything; return the pid of a dataset that can be archived.

    Args:
        inventory: what to upload; nothing of it may be refused.
        body: from `dataset_body`.
        catalogue: SciCat, as the user who will own the dataset.
        zone: where the files go.
        on_dataset: told the pid as soon as there is one.
        on_file: told of each file that is up.

    Raises:
        OutOfReach, Refused: a service failed; the dataset, if there is one, cannot be archived.
    """
    async with open_zone(zone) as s3:
        pid = await catalogue.create_dataset(body)
        on_dataset(pid)
        digests = await _upload(s3, zone.bucket, pid, inventory.files, on_file)
    for start in range(0, len(inventory.files), FILES_PER_BLOCK):
        files = inventory.files[start : start + FILES_PER_BLOCK]
        await catalogue.add_files(pid, [file_entry(file, digests[file.path]) for file in files], algorithm="sha256")
    await catalogue.set_lifecycle(pid, {"archivable": True, "archiveStatusMessage": "datasetCreated"})
    return pid


@asynccontextmanager
async def open_zone(zone: LandingZone) -> "AsyncGenerator[S3Client]":
    """An S3 client for the landing zone, which was seen to answer.

    Raises:
        OutOfReach: it does not answer, does not let us in, or the bucket is missing.
    """
    # S3's client takes long to load, and of all commands only `ingest` needs it.
    import aioboto3
    from aiobotocore.config import AioConfig

    async with AsyncExitStack() as stack:
        client: S3Client = await stack.enter_async_context(
            aioboto3.Session().client(  # pyright: ignore[reportUnknownMemberType] (overloads for services without stubs)
                "s3",
                endpoint_url=zone.url,
                aws_access_key_id=zone.key,
                aws_secret_access_key=zone.secret,
                region_name=zone.region,
                verify=os.environ.get("CA_FILE") or None,
                config=AioConfig(
                    max_pool_connections=2 * AT_ONCE,
                    s3={"addressing_style": "path"},
                    retries={"total_max_attempts": ATTEMPTS},
                    proxies=None if foreign(zone.url) else {},
                ),
            )
        )
        with s3_errors(zone.url):
            await client.head_bucket(Bucket=zone.bucket)
        yield client


@contextlib.contextmanager
def s3_errors(url: str) -> Generator[None]:
    """Turn the S3 client's errors into ours.

    Raises:
        OutOfReach: instead of them.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "?")
        raise OutOfReach(f"S3 at {url} refuses {error.operation_name}: {code}") from None
    except (BotoCoreError, OSError) as error:
        raise OutOfReach(f"S3 at {url} does not answer: {error}") from None


async def _upload(
    s3: "S3Client", bucket: str, pid: str, files: Sequence[SourceFile], on_file: Callable[[SourceFile], None]
) -> dict[str, str]:
    """Put all files up, 16 at a time, and return path → sha256 (hex)."""
    digests: dict[str, str] = {}
    waiting = iter(files)
    large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def one_after_the_other() -> None:
        for file in waiting:
            digests[file.path] = await _put(s3, bucket, raw_key(pid, file.path), file, large)
            on_file(file)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_the_other())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return digests


async def _put(s3: "S3Client", bucket: str, key: str, file: SourceFile, large: asyncio.Semaphore) -> str:
    """Put one file up and return its sha256 (hex).

    Raises:
        Refused: it changed meanwhile, so what went up may be neither the old nor the new content.
    """
    if file.size <= _PART_BYTES:
        content, digest = await asyncio.to_thread(_read, file)
        checksum = base64.b64encode(digest).decode()
        with s3_errors(s3.meta.endpoint_url):
            await s3.put_object(Bucket=bucket, Key=key, Body=content, ChecksumSHA256=checksum)
        return digest.hex()
    from boto3.s3.transfer import TransferConfig  # pyright: ignore[reportMissingTypeStubs]

    async with large:
        settings = TransferConfig(
            multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=2, max_io_queue=1
        )
        digest = await asyncio.to_thread(_digest, file)
        with file.source.open("rb", buffering=0) as content, s3_errors(s3.meta.endpoint_url):
            await s3.upload_fileobj(content, bucket, key, ExtraArgs={"ChecksumAlgorithm": "SHA256"}, Config=settings)
        await asyncio.to_thread(check_unchanged, file)
        return digest.hex()


def _read(file: SourceFile) -> tuple[bytes, bytes]:
    content = file.source.read_bytes()
    check_unchanged(file)
    return content, hashlib.sha256(content).digest()


def _digest(file: SourceFile) -> bytes:
    with file.source.open("rb", buffering=0) as content:
        return hashlib.file_digest(content, "sha256").digest()


def check_unchanged(file: SourceFile) -> None:
    """Do nothing if the file is as it was when it was found.

    Raises:
        Refused: it has another size or time.
    """
    facts = file.source.stat()
    if (facts.st_size, facts.st_mtime_ns) != (file.size, file.mtime_ns):
        raise Refused(f"{shown(file.path)} changed while it was being uploaded", status=409)


def file_entry(file: SourceFile, digest: str) -> dict[str, Any]:
    """One entry of `dataFileList`, with the sha256 in hex; SciCat keeps times to the millisecond."""
    return {
        "path": file.path,
        "size": file.size,
        "time": format_time(file.mtime_ns // _MILLISECOND_NS * _MILLISECOND_NS),
        "chk": digest,
        "uid": str(file.uid),
        "gid": str(file.gid),
        "perm": stat.filemode(file.mode),
    }
