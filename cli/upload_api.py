"""The archiver's API as a client sees it that uploads: room, URLs for parts, completion, the end; and the PUTs to S3.

No credentials of S3 are known here: whoever has a URL may put one part, for a while.
"""

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any, Self, cast

import httpx

from cli.catalogue import Document, OutOfReach, Refused, UserCatalogue, foreign, trusted
from cli.following import reasons
from cli.upload_token import UploadToken
from domain.checksum import b64, composite
from domain.errors import INFRASTRUCTURE_ERRORS

API_TRIES = 6
PUT_TRIES = 10
"""S3 may be restarted meanwhile; with the pauses this is about two minutes."""

FIRST_PAUSE_S = 1.0
"""It doubles before each further try."""
_LONGEST_PAUSE_S = 30.0

_PASSING = INFRASTRUCTURE_ERRORS | {"TemporalUnavailable"}
_ANSWER_WITHIN_S = 660.0
"""Whoever finalizes waits for SciCat, which waits for the API; throwing away takes up to ten minutes."""

Part = tuple[str, str]
"""ETag without quotes, and SHA-256 in base64, of one part."""

Content = Callable[[], AsyncGenerator[bytes]]
"""Makes the bytes of a part, from its start, each time that it is called."""


class NoRoom(Exception):
    """The landing zone is full."""

    def __init__(self, text: str, *, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        """How long to wait, if the API has said so; else 0."""


class Declined(Refused):
    """The API says no, and its word for why."""

    def __init__(self, text: str, *, status: int, code: str) -> None:
        super().__init__(text, status=status)
        self.code = code


class PutRefused(Refused):
    """S3 does not take a part."""

    @property
    def link_ended(self) -> bool:
        """S3 takes the URL for no longer valid, or has forgotten the upload that it belongs to."""
        return self.status in (403, 404)


class UploadApi:
    """One user's uploads.

    Args:
        url: the API's address.
        catalogue: SciCat, as the user who uploads.
    """

    def __init__(self, url: str, catalogue: UserCatalogue) -> None:
        context = trusted()
        self._api = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            timeout=httpx.Timeout(30, read=_ANSWER_WITHIN_S),
            trust_env=foreign(url),
            verify=context,
        )
        # S3 and the identity provider may be elsewhere than the API.
        waiting = httpx.Timeout(60, read=300, pool=None)
        self._near = httpx.AsyncClient(timeout=waiting, trust_env=False, verify=context)
        self._far = httpx.AsyncClient(timeout=waiting, trust_env=True, verify=context)
        self._token = UploadToken(self._api, self._far if foreign(url) else self._near, catalogue)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in (self._api, self._near, self._far):
            await client.aclose()

    async def admit(self) -> None:
        """Get a token.

        Raises:
            OutOfReach, Refused: this user may not upload.
        """
        await self._token.value()

    async def request_room(self, pid: str, size_bytes: int) -> None:
        """Have room kept for a dataset; a repeat prolongs it.

        Raises:
            NoRoom: there is none now.
        """
        await self._call("requestDatasetUpload", {"dataset_id": pid, "dataset_size_gib": size_bytes >> 30})

    async def begin(self, pid: str, key: str, parts: int) -> tuple[str, list[str]]:
        """Upload id, empty for a single part, and the secret URL of each part."""
        body = {"dataset_id": pid, "object_name": key, "parts": parts}
        # A second call would begin a second upload, and of the first nobody would know.
        said = await self._call("presignedUrls", body, tries=API_TRIES if parts == 1 else 1)
        urls = [base64.b64decode(str(url)).decode() for url in cast("list[object]", said["urls"])]
        return str(said["upload_id"]), urls

    async def complete(self, pid: str, key: str, upload_id: str, parts: Sequence[Part]) -> str:
        """Have an object made of its parts, or ask whether it is there; empty if so, else S3's word for why not."""
        named = [
            {"part_number": number, "etag": etag, "checksum_sha256": digest}
            for number, (etag, digest) in enumerate(parts, 1)
        ]
        whole = b64(composite(base64.b64decode(digest) for _, digest in parts))
        body = {"dataset_id": pid, "object_name": key, "upload_id": upload_id, "parts": named, "checksum_sha256": whole}
        try:
            await self._call("completeUpload", body)
        except Declined as no:
            if no.status != 500:
                raise
            return no.code
        return ""

    async def abort_file(self, pid: str, key: str, upload_id: str) -> None:
        """Forget the parts of one file; an upload that is not known is fine."""
        await self._call("abortMultipartUpload", {"dataset_id": pid, "object_name": key, "upload_id": upload_id})

    async def abort(self, pid: str) -> None:
        """Throw away all that was uploaded of a dataset.

        Raises:
            Declined: it is finalized or being archived.
        """
        await self._call("abortDatasetUpload", {"dataset_id": pid})

    async def finalize(self, pid: str, *, archive: bool, owner_group: str, owner_user: str, email: str) -> str:
        """Say that all is there, as often as one likes; what has become of it, in a sentence.

        Raises:
            Declined: it is not complete.
        """
        said = await self._call(
            "finalizeDatasetUpload",
            {
                "dataset_id": pid,
                "create_archiving_job": archive,
                "owner_group": owner_group,
                "owner_user": owner_user,
                "contact_email": email,
            },
        )
        return str(said["message"])

    async def put(self, url: str, content: Content, *, length: int, digest: str) -> str:
        """Put one part, again if S3 stumbles; return its ETag.

        Args:
            url: from `begin`.
            content: makes the bytes.
            length: how many, in bytes.
            digest: their SHA-256 in base64.

        Raises:
            PutRefused: S3 says no.
            OutOfReach: it does not answer, or with errors only.
        """
        headers = {"x-amz-checksum-sha256": digest, "Content-Length": str(length)}
        host = httpx.URL(url).netloc.decode()
        http = self._far if foreign(url) else self._near
        said = ""
        for attempt in range(PUT_TRIES):
            try:
                answer = await http.put(url, content=content(), headers=headers)
            except httpx.TransportError as error:
                said = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    return answer.headers["ETag"].strip('"')
                said = f"{answer.status_code} {_code(answer.text)}"
                if answer.status_code < 500 and answer.status_code not in (408, 429):
                    raise PutRefused(f"S3 at {host} does not take it: {said}", status=answer.status_code)
            if attempt < PUT_TRIES - 1:
                await _pause(attempt)
        raise OutOfReach(f"S3 at {host} did not take a part in {PUT_TRIES} tries: {said}")

    async def _call(self, name: str, body: Document, *, tries: int = API_TRIES) -> Document:
        """Call `/s3/<name>`; what may pass by itself is tried again.

        Raises:
            OutOfReach: no answer, a fault that did not pass, or our token is refused.
            Declined: the API says no.
            NoRoom: 507.
        """
        said = refused = ""
        renewed = False
        attempt = 0
        while True:
            token = await self._token.value(refused=refused)
            try:
                answer = await self._api.post(f"s3/{name}", json=body, headers={"Authorization": f"Bearer {token}"})
            except httpx.ConnectError as error:  # it was not heard, so it may be said again
                said = f"does not answer: {error or type(error).__name__}"
                tries = max(tries, API_TRIES)
            except httpx.HTTPError as error:
                said = f"does not answer: {str(error) or type(error).__name__}"
            else:
                if answer.is_success:
                    return cast(Document, answer.json())
                if answer.status_code == 401 and not renewed:
                    refused, renewed = token, True
                    continue
                said = _trouble(answer)
            attempt += 1
            if attempt >= tries:
                raise OutOfReach(f"the archiver's API at {self._api.base_url} {said} ({name})")
            await _pause(attempt - 1)


async def _pause(attempt: int) -> None:
    await asyncio.sleep(min(_LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))


def _trouble(answer: httpx.Response) -> str:
    """What may pass by itself.

    Raises:
        OutOfReach, Declined, NoRoom: it is of another kind.
    """
    status = answer.status_code
    try:
        content: Any = answer.json()
    except ValueError:
        content = None
    said = cast(Document, content) if isinstance(content, dict) else {}
    if status == 507:
        wait = answer.headers.get("Retry-After", "")
        raise NoRoom(str(said.get("message", "")), retry_after_s=float(wait) if wait.isdecimal() else 0.0)
    if status == 401:
        raise OutOfReach(f"the archiver's API does not take our token: {said.get('detail', '')}")
    if status == 422 and said:
        raise Declined(f"the archiver's API does not understand: {reasons(answer)}", status=status, code="")
    code, message = str(said.get("code", "")), str(said.get("message", ""))
    if status < 500 or (code and code not in _PASSING):
        raise Declined(message or f"the archiver's API answered with {status}", status=status, code=code)
    return f"answered with {status}: {message}" if message else f"answered with {status}"


def _code(text: str) -> str:
    """S3's word for an error."""
    found = re.search(r"<Code>(\w+)</Code>", text)
    return found[1] if found else ""
