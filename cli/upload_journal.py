"""What an upload has done so far, kept in a file, so that the next run goes on where this one ended, however it ended.

The API tells neither what lies in the landing zone nor which uploads are open: upload ids, the URLs that came with them
and the ETags of finished parts are known to their client alone. Only that an object is there, made of these parts, can
be asked. So each of them is a line of this file as soon as it is known; a line that was cut off is passed over.

The file holds URLs by which parts can be put for a while, and nobody but its owner may read it.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self, cast
from urllib.parse import parse_qs, urlsplit

from cli.catalogue import Refused

_ENDS_SOON_S = 30.0


@dataclass(slots=True)
class FileUpload:
    """One file on its way, or there."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    """Of the whole file, in hex."""
    part_bytes: int
    digests: list[str]
    """SHA-256 of each part, in base64."""
    upload_id: str = ""
    urls: list[str] = field(default_factory=list[str], repr=False)
    etags: dict[int, str] = field(default_factory=dict[int, str])
    """By part number, of the parts that S3 has."""
    sent: bool = False

    @property
    def parts(self) -> list[tuple[str, str]]:
        """ETag and digest of each part, all of which S3 has."""
        return [(self.etags[number], digest) for number, digest in enumerate(self.digests, 1)]

    @property
    def links_hold(self) -> bool:
        """Whether the URLs are valid still, and for more than a moment."""
        query = parse_qs(urlsplit(self.urls[0]).query) if self.urls else {}
        try:
            began = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return began.timestamp() + int(query["X-Amz-Expires"][0]) - _ENDS_SOON_S > time.time()
        except (KeyError, ValueError):
            return False


class Journal:
    """The record of one dataset's upload; open in one process at a time."""

    def __init__(self, path: Path, file: BinaryIO, pid: str, folder: str) -> None:
        self._path, self._file = path, file
        self.pid, self.folder = pid, folder
        self.from_start = False
        """Whether all that was ever uploaded of the dataset stands here."""
        self.files: dict[str, FileUpload] = {}
        self.complete = False
        """Everything is uploaded and registered; only the end may be missing."""

    @classmethod
    @contextmanager
    def open(cls, cache: Path, *, api_url: str, pid: str, folder: str, new: bool = False) -> Generator[Self]:
        """Take a dataset's record, or begin one.

        Args:
            cache: the folder of all records.
            api_url: of the archiver that gets the files.
            pid: the dataset.
            folder: where its files are on this machine.
            new: nobody can have uploaded anything of it.

        Raises:
            Refused: another process uploads this dataset.
        """
        path = cache / f"{hashlib.sha256(f'{api_url} {pid}'.encode()).hexdigest()[:32]}.jsonl"
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Refused(
                f"no record of the upload can be kept in {cache} ({error.strerror}): "
                "let XDG_CACHE_HOME name a folder of yours",
                status=409,
            ) from None
        with os.fdopen(descriptor, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"another process is uploading {pid} already", status=409) from None
            journal = cls(path, file, pid, folder)
            journal._read()
            if not file.tell():
                journal.from_start = new
                journal._write({"dataset": {"api": api_url, "pid": pid, "folder": folder, "from_start": new}})
            yield journal

    def begun(self, upload: FileUpload) -> None:
        """Note an upload that S3 keeps open until it is completed or aborted; so it is not to be lost."""
        self._keep(upload)
        os.fsync(self._file.fileno())

    def part(self, upload: FileUpload, number: int, etag: str) -> None:
        """Note that S3 has a part."""
        upload.etags[number] = etag
        self._write({"part": [upload.path, number, etag]})

    def sent(self, upload: FileUpload) -> None:
        """Note that the file is there."""
        upload.sent, upload.urls = True, []
        self._keep(upload)

    def forget(self, path: str) -> None:
        """Note that nothing is there of a file."""
        self.files.pop(path, None)
        self._write({"forgotten": path})

    def completed(self) -> None:
        """Note that only the end is missing."""
        self.complete = True
        self._write({"complete": True})

    def remove(self) -> None:
        """Drop the record: the upload has ended."""
        self._path.unlink(missing_ok=True)

    def _keep(self, upload: FileUpload) -> None:
        self.files[upload.path] = upload
        self.complete = False
        self._write({"upload": asdict(upload)})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _read(self) -> None:
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self._follow(_parsed(line))
        self._file.seek(whole)
        self._file.truncate()

    def _follow(self, line: dict[str, Any]) -> None:
        if upload := line.get("upload"):
            etags = {int(number): etag for number, etag in upload["etags"].items()}
            self.files[upload["path"]] = FileUpload(**(upload | {"etags": etags}))
            self.complete = False
        elif part := line.get("part"):
            path, number, etag = part
            self.files[path].etags[number] = etag
        elif path := line.get("forgotten"):
            self.files.pop(path, None)
        elif "dataset" in line:
            self.from_start = line["dataset"]["from_start"]
        elif "complete" in line:
            self.complete = True


def unfinished(cache: Path, *, api_url: str, folder: str) -> list[str]:
    """Datasets whose upload from a folder has not ended, the latest first."""
    found: list[str] = []
    for path in sorted(cache.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True):
        with path.open("rb") as file:
            said = _parsed(file.readline()).get("dataset")
        if isinstance(said, dict):
            dataset = cast("dict[str, Any]", said)
            if (dataset["api"], dataset["folder"]) == (api_url, folder):
                found.append(str(dataset["pid"]))
    return found


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        said: Any = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}
