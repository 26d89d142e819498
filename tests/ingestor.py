"""A client of `/token` and `/s3` that knows no more than the contract, as the Ingestor is one."""

import asyncio
import base64
import hashlib
from typing import Any, Self

import httpx

from domain import names
from domain.checksum import b64, composite
from tests.lab import Lab


class Ingestor:
    """Uploads with one token."""

    def __init__(self, http: httpx.AsyncClient, api: str, token: str) -> None:
        self._http, self._api, self._token = http, api, token

    @classmethod
    async def alice(cls, lab: Lab) -> Self:
        """One of alice's, who belongs to a group that may upload."""
        answer = await traded(lab, await scicat_token(lab, "alice"))
        assert answer.status_code == 201, answer.text
        return cls(lab.http, f"http://127.0.0.1:{lab.stack.ports.api}", answer.json()["access_token"])

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """Call `/s3/…`; whatever it answers."""
        headers = {"Authorization": f"Bearer {self._token}"}
        return await self._http.post(f"{self._api}/s3/{path}", json=body, headers=headers)

    async def ask(self, path: str, **body: Any) -> Any:
        """The same, but 201 or nothing."""
        answer = await self.post(path, **body)
        assert answer.status_code == 201, (path, answer.status_code, answer.text)
        return answer.json()

    async def put(self, url: str, data: bytes) -> str:
        """One part; its ETag."""
        sent = {"x-amz-checksum-sha256": b64(hashlib.sha256(data).digest()), "Content-Type": "application/json"}
        answer = await self._http.put(decoded(url), content=data, headers=sent)
        assert answer.status_code == 200, answer.text
        return answer.headers["ETag"].strip('"')

    async def upload(self, pid: str, path: str, *parts: bytes) -> None:
        """A file, in parts; one of a single part is completed too, though clients seldom do."""
        named = {"dataset_id": pid, "object_name": names.raw_key(pid, path)}
        begun = await self.ask("presignedUrls", **named, parts=len(parts))
        digests = [hashlib.sha256(part).digest() for part in parts]
        etags = await asyncio.gather(*(self.put(url, part) for url, part in zip(begun["urls"], parts, strict=True)))
        done = [
            {"part_number": number, "etag": etag, "checksum_sha256": b64(digest)}
            for number, (etag, digest) in enumerate(zip(etags, digests, strict=True), 1)
        ]
        whole = b64(composite(digests))
        said = await self.ask(
            "completeUpload", **named, upload_id=begun["upload_id"], parts=done, checksum_sha256=whole
        )
        assert said["key"] == named["object_name"]

    async def finalize(self, pid: str, *, archive: bool = True) -> httpx.Response:
        """Say that all of a dataset is there."""
        return await self.post(
            "finalizeDatasetUpload",
            dataset_id=pid,
            create_archiving_job=archive,
            owner_group="group1",
            owner_user="alice",
            contact_email="alice@example.org",
        )


def decoded(url: str) -> str:
    """A URL of `/s3/presignedUrls` as one can dial it."""
    return base64.b64decode(url).decode()


async def scicat_token(lab: Lab, name: str, password: str = "") -> str:
    """What SciCat gives to somebody who logs in."""
    login = await lab.scicat("POST", "/api/v3/auth/login", json={"username": name, "password": password or name})
    return login.json()["access_token"]


async def traded(lab: Lab, token: str) -> httpx.Response:
    """The answer of `/token`."""
    return await lab.api("POST", "/token", auth=None, headers={"Authorization": f"Bearer {token}"})
