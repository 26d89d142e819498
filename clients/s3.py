"""S3, control calls only: small objects, listings, multipart uploads' beginning and end, presigned links.

Bulk bytes go through `clients.s3_bulk`. Only this module knows botocore's errors; it turns their codes into ours one by
one. Nothing is retried here, except that aiohttp repeats an idempotent request whose kept connection was dead.
"""

import base64
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from urllib.parse import quote

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError

from clients import telemetry
from clients.s3_bulk import PartRefused, UploadVanished
from clients.s3_wire import MISCONFIGURED
from domain.errors import InfrastructureError, Misconfigured, ObjectStoreUnavailable

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_BATCH = 1000
"""S3 deletes at most this many keys in one call."""

Versioning = Literal["Enabled", "Suspended", "Off"]

_NOT_FOUND = ("404", "NoSuchKey", "NoSuchVersion", "NotFound", "405", "MethodNotAllowed")
_BAD_PARTS = (
    *("InvalidPart", "InvalidPartOrder", "EntityTooSmall"),
    *("InvalidArgument", "BadDigest", "XAmzContentChecksumMismatch"),
)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One current object of a listing."""

    key: str
    size: int
    etag: str
    """Without quotes."""
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version, or one delete marker, of a listing."""

    key: str
    version_id: str
    """`null`, literally, for what was written without versioning; that word is needed to delete it."""
    size: int
    etag: str
    """Without quotes; empty for a delete marker."""
    last_modified: datetime
    is_latest: bool
    delete_marker: bool


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What S3 says of one object."""

    size: int
    etag: str
    """Without quotes."""
    last_modified: datetime
    version_id: str | None
    composite_sha256: str | None
    """As S3 gives it: for a multipart object base64 and `-<parts>`, for one that was put whole base64 alone."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part that an open multipart upload has."""

    size: int
    etag: str
    """Without quotes."""
    sha256_b64: str


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    initiated: datetime


def moment(text: str) -> datetime:
    """A date of S3's: ISO 8601 in XML, RFC 9110 in headers.

    botocore's own parser tries one format after another: 0.1 ms for each key of a listing, more than all else of it.

    Raises:
        ValueError: neither of the two.
    """
    return datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)


ADDRESSED_WITHOUT = ("Key", "Prefix", "CopySource")
"""Parameters that botocore's rules for the address of a request declare, and no rule looks at."""


def _session() -> AioSession:
    """botocore without what it does for each request anew: half a millisecond of two."""
    session = AioSession()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=moment)
    # It remembers the last hundred addresses by all parameters: with the key among them it never finds one again.
    rules = session.get_component("data_loader").load_service_model("s3", "endpoint-rule-set-1")
    for name in ADDRESSED_WITHOUT:
        del rules["parameters"][name]
    return session


class ObjectStore:
    """The buckets of one S3 account. Every method may be called twice with the same arguments without harm.

    Every method raises `ObjectStoreUnavailable` for whatever may pass, and `Misconfigured` for refused credentials and
    missing buckets; only other errors are named at the method.
    """

    def __init__(self, client: "S3Client", external: "S3Client", region: str) -> None:
        """Use `connect`."""
        self._s3, self._external, self._region = client, external, region

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        *,
        endpoint: str,
        access_key: str,
        secret_key: str,
        region: str,
        ca_file: Path | None = None,
        external_endpoint: str | None = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        max_connections: int = 64,
    ) -> AsyncGenerator["ObjectStore"]:
        """Open the clients; connections are made when they are needed.

        Args:
            endpoint: address of S3 as this process sees it; buckets are named in the path.
            access_key: S3 account.
            secret_key: its secret.
            region: part of every signature.
            ca_file: certificates to trust instead of the system's.
            external_endpoint: address of S3 as the users see it, for presigned links; the same if not given.
            connect_timeout_s: for the connection and the TLS handshake.
            timeout_s: longest wait for the next bytes of an answer.
            max_connections: open at once.
        """
        config = AioConfig(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            parameter_validation=False,
            s3={"payload_signing_enabled": False, "addressing_style": "path"},
            max_pool_connections=max_connections,
            connect_timeout=connect_timeout_s,
            read_timeout=timeout_s,
            retries={"total_max_attempts": 1, "mode": "standard"},
            # Its own is put together from twenty pieces for each request.
            user_agent="scopemarchiver",
        )
        session: Any = aioboto3.Session(
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name=region,
            botocore_session=_session(),
        )
        verify = str(ca_file) if ca_file else None
        async with AsyncExitStack() as stack:
            client: S3Client = await stack.enter_async_context(
                session.client("s3", endpoint_url=endpoint, config=config, verify=verify)
            )
            _listen(client.meta.events)
            external: S3Client = client
            if external_endpoint and external_endpoint != endpoint:
                external = await stack.enter_async_context(
                    session.client("s3", endpoint_url=external_endpoint, config=config, verify=verify)
                )
            yield cls(client, external, region)

    async def put(self, bucket: str, key: str, body: bytes, *, only_if_absent: bool = False) -> str:
        """Write a small object; its ETag without quotes, empty if it was there and was to be written only if absent."""
        with _errors(f"writing {key!r} to bucket {bucket}"):
            digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
            with _unless("PreconditionFailed", "412"):
                only = {"IfNoneMatch": "*"} if only_if_absent else {}
                answer = await self._s3.put_object(
                    Bucket=bucket, Key=key, Body=body, ChecksumSHA256=digest, **cast(Any, only)
                )
                return answer["ETag"].strip('"')
        return ""

    async def replace(self, bucket: str, key: str, body: bytes, known: str | None) -> str | None:
        """Write a small object if nobody else has written it meanwhile.

        Args:
            bucket: bucket.
            key: key.
            body: all of it.
            known: ETag without quotes that the object must still have; None: there must be none.

        Returns:
            Its ETag now, without quotes; None if it is another object, or is gone, and nothing was written.
        """
        only = {"IfNoneMatch": "*"} if known is None else {"IfMatch": f'"{known}"'}
        with (
            _errors(f"writing {key!r} to bucket {bucket}"),
            _unless("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"),
        ):
            answer = await self._s3.put_object(Bucket=bucket, Key=key, Body=body, **cast(Any, only))
            return answer["ETag"].strip('"')
        return None

    async def get(self, bucket: str, key: str) -> bytes | None:
        """Read a small object whole, None if there is none."""
        with _errors(f"reading {key!r} of bucket {bucket}"), _unless(*_NOT_FOUND):
            answer = await self._s3.get_object(Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                return await body.read()
        return None

    async def get_unless(self, bucket: str, key: str, known: str) -> tuple[bytes | None, str]:
        """Read a small object whole unless it still has a known ETag.

        Returns:
            (content, ETag without quotes); (None, `known`) if nothing has changed, (None, "") if there is no such
            object.
        """
        with _errors(f"reading {key!r} of bucket {bucket}"), _unless(*_NOT_FOUND):
            with _unless("304", "NotModified"):
                unless = {"IfNoneMatch": f'"{known}"'} if known else {}
                answer = await self._s3.get_object(Bucket=bucket, Key=key, **cast(Any, unless))
                async with answer["Body"] as body:
                    return await body.read(), answer["ETag"].strip('"')
            return None, known
        return None, ""

    async def exists(self, bucket: str, key: str) -> bool:
        """Whether there is a current object."""
        return await self.head(bucket, key) is not None

    async def head(self, bucket: str, key: str, version_id: str | None = None) -> ObjectHead | None:
        """Size, ETag and composite digest; None if there is none, or the version is a delete marker."""
        with _errors(f"looking at {key!r} in bucket {bucket}"), _unless(*_NOT_FOUND):
            if version_id is None:
                answer = await self._s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
            else:
                answer = await self._s3.head_object(
                    Bucket=bucket, Key=key, VersionId=version_id, ChecksumMode="ENABLED"
                )
            return ObjectHead(
                size=answer["ContentLength"],
                etag=answer["ETag"].strip('"'),
                last_modified=answer["LastModified"],
                version_id=answer.get("VersionId"),
                composite_sha256=answer.get("ChecksumSHA256"),
            )
        return None

    async def list_objects(self, bucket: str, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Current objects below the prefix behind `after`, sorted by key, a page of 1,000 in memory at a time."""
        with _errors(f"listing {prefix!r} of bucket {bucket}"):
            pages = self._s3.get_paginator("list_objects_v2")
            async for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=after):
                for item in page.get("Contents", ()):
                    yield ObjectInfo(
                        key=item.get("Key", ""),
                        size=item.get("Size", 0),
                        etag=item.get("ETag", "").strip('"'),
                        last_modified=item["LastModified"],  # pyright: ignore[reportTypedDictNotRequiredAccess]
                    )

    async def list_versions(self, bucket: str, prefix: str) -> AsyncIterator[ObjectVersion]:
        """All versions and delete markers below the prefix, by key and then newest first, a page in memory at a time.

        In a bucket that never was versioned, every object has the version `null`.
        """
        with _errors(f"listing versions of {prefix!r} in bucket {bucket}"):
            pages = self._s3.get_paginator("list_object_versions")
            async for page in pages.paginate(Bucket=bucket, Prefix=prefix):
                found = [_version(item) for item in page.get("Versions", ())]
                markers = [_version(item) for item in page.get("DeleteMarkers", ())]
                if markers:
                    # S3 sends one list, of which botocore makes two. Times may be whole seconds; the latest is known.
                    found += markers
                    found.sort(key=lambda v: (v.last_modified, v.is_latest), reverse=True)
                    found.sort(key=lambda v: v.key.encode())
                for version in found:
                    yield version

    async def delete_objects(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete current objects; absent ones are fine. In a versioned bucket this leaves delete markers."""
        await self._delete(bucket, ({"Key": key} for key in keys))

    async def delete_versions(self, bucket: str, versions: Iterable[tuple[str, str]]) -> None:
        """Delete these (key, version id) for good, delete markers included; absent ones are fine."""
        await self._delete(bucket, ({"Key": key, "VersionId": version} for key, version in versions))

    async def _delete(self, bucket: str, names: Iterable[dict[str, str]]) -> None:
        for batch in _batches(names, _BATCH):
            with _errors(f"deleting {len(batch)} objects of bucket {bucket}"):
                answer = await self._s3.delete_objects(
                    Bucket=bucket, Delete={"Objects": cast(Any, batch), "Quiet": True}
                )
            failed = [e for e in answer.get("Errors", ()) if e.get("Code") not in ("NoSuchKey", "NoSuchVersion")]
            if failed:
                code, key = failed[0].get("Code", ""), failed[0].get("Key", "")
                raise _named(code, f"deleting {len(failed)} objects of bucket {bucket}, the first of them {key!r}")

    async def create_multipart(self, bucket: str, key: str) -> str:
        """Begin a multipart upload whose parts carry SHA-256 digests and whose object gets the composite of them."""
        with _errors(f"beginning an upload of {key!r} to bucket {bucket}"):
            answer = await self._s3.create_multipart_upload(
                Bucket=bucket, Key=key, ChecksumAlgorithm="SHA256", ChecksumType="COMPOSITE"
            )
            return answer["UploadId"]

    async def list_parts(self, bucket: str, key: str, upload_id: str) -> dict[int, Part] | None:
        """Parts by number that the upload has; None if it is unknown, or keeps no SHA-256 digests of its parts."""
        with _errors(f"listing the parts of {key!r} in bucket {bucket}"), _unless("NoSuchUpload"):
            parts: dict[int, Part] = {}
            pages = self._s3.get_paginator("list_parts")
            async for page in pages.paginate(Bucket=bucket, Key=key, UploadId=upload_id):
                if page.get("ChecksumAlgorithm") != "SHA256":
                    return None
                for item in page.get("Parts", ()):
                    parts[item.get("PartNumber", 0)] = Part(
                        size=item.get("Size", 0),
                        etag=item.get("ETag", "").strip('"'),
                        sha256_b64=item.get("ChecksumSHA256", ""),
                    )
            return parts
        return None

    async def complete_multipart(
        self, bucket: str, key: str, upload_id: str, parts: Sequence[tuple[int, str, str]], composite_b64: str
    ) -> str:
        """Make one object of the parts, which S3 compares with what it has; return its address as S3 names it.

        Args:
            bucket: bucket.
            key: key.
            upload_id: from `create_multipart`.
            parts: number, ETag without quotes, and SHA-256 in base64 of each part, by number.
            composite_b64: SHA-256 in base64 over the parts' raw digests, without `-<parts>`.

        Raises:
            PartRefused: S3 has other parts than these, or the composite is another; the upload stays open.
            UploadVanished: the upload is unknown: aborted, or completed by a call whose answer was lost.
        """
        what = f"completing the upload of {key!r} to bucket {bucket}"
        vanished = _unless("NoSuchUpload", otherwise=lambda _: UploadVanished(f"{what}: the upload is unknown"))
        refused = _unless(*_BAD_PARTS, otherwise=lambda code: PartRefused(f"{what}: S3 has other parts", code))
        with _errors(what), vanished, refused:
            answer = await self._s3.complete_multipart_upload(
                Bucket=bucket,
                Key=key,
                UploadId=upload_id,
                ChecksumType="COMPOSITE",
                ChecksumSHA256=f"{composite_b64}-{len(parts)}",
                MultipartUpload={
                    "Parts": [
                        {"PartNumber": number, "ETag": f'"{etag}"', "ChecksumSHA256": digest}
                        for number, etag, digest in parts
                    ]
                },
            )
        return answer.get("Location", "")

    async def abort_multipart(self, bucket: str, key: str, upload_id: str) -> None:
        """Forget an open upload and its parts; an unknown one is fine."""
        with (
            _errors(f"aborting an upload of {key!r} to bucket {bucket}"),
            _unless("NoSuchUpload", "404", "XMinioInvalidResourceName"),
        ):
            await self._s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)

    async def open_uploads(self, bucket: str, prefix: str, keys: Iterable[str] = ()) -> list[OpenUpload]:
        """Open multipart uploads below the prefix.

        MinIO lists them for the empty prefix (all that were begun since it was started, from memory) or for one exact
        key (from disk), so this asks for the whole bucket and filters. Whoever has to know of uploads that are older
        than MinIO's last start names the `keys` that matter: each is asked for by a call of its own.
        """
        found: dict[str, OpenUpload] = {}
        with _errors(f"listing the open uploads of bucket {bucket}"):
            pages = self._s3.get_paginator("list_multipart_uploads")
            for asked in ("", *keys):
                async for page in pages.paginate(Bucket=bucket, Prefix=asked):
                    for item in page.get("Uploads", ()):
                        key, upload_id, since = item.get("Key", ""), item.get("UploadId", ""), item.get("Initiated")
                        if key.startswith(prefix) and since is not None:
                            found[upload_id] = OpenUpload(key, upload_id, since)
        return sorted(found.values(), key=lambda upload: (upload.key, upload.initiated))

    async def versioning(self, bucket: str) -> Versioning | None:
        """How the bucket keeps versions; None if there is no such bucket."""
        with _errors(f"asking for the versioning of bucket {bucket}"), _unless("NoSuchBucket"):
            answer = await self._s3.get_bucket_versioning(Bucket=bucket)
            return answer.get("Status", "Off")
        return None

    async def ensure_bucket(self, bucket: str, *, versioned: bool) -> None:
        """Make the bucket if it is missing and switch versioning on if asked; versioning is never switched off."""
        with _errors(f"creating bucket {bucket}"), _unless("BucketAlreadyOwnedByYou"):
            if self._region == "us-east-1":
                await self._s3.create_bucket(Bucket=bucket)
            else:
                location = cast(Any, {"LocationConstraint": self._region})
                await self._s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=location)
        if versioned and await self.versioning(bucket) != "Enabled":
            with _errors(f"switching versioning on for bucket {bucket}"):
                await self._s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    async def presign_get(self, bucket: str, key: str, expires_s: int, download_name: str | None = None) -> str:
        """A link by which anybody can read the object for so long, under that file name; it is a secret."""
        params = {"Bucket": bucket, "Key": key}
        if download_name is not None:
            params["ResponseContentDisposition"] = f"attachment; filename*=UTF-8''{quote(download_name, safe='')}"
        return await self._external.generate_presigned_url("get_object", Params=params, ExpiresIn=expires_s)


def _version(item: Any) -> ObjectVersion:
    return ObjectVersion(
        key=item["Key"],
        version_id=item["VersionId"],
        size=item.get("Size", 0),
        etag=item.get("ETag", "").strip('"'),
        last_modified=item["LastModified"],
        is_latest=item["IsLatest"],
        delete_marker="ETag" not in item,
    )


_T = TypeVar("_T")


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    batch: list[_T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _code(error: ClientError) -> str:
    """S3's own word; a HEAD has no body, so botocore knows only a number where MinIO says more in a header."""
    response: Any = error.response
    headers: dict[str, str] = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get("x-minio-error-code") or str(response.get("Error", {}).get("Code", ""))


def _named(code: str, what: str) -> InfrastructureError:
    said = f"{what}: S3 answered {code}"
    if code in MISCONFIGURED or code == "403":
        return Misconfigured(said)
    return ObjectStoreUnavailable(said)


def _listen(events: Any) -> None:
    """Tell of every request, each page of a listing being one; the handlers get a dictionary of the request's own."""

    def begun(context: dict[str, Any], **_: Any) -> None:
        context["begun"] = time.perf_counter()

    def answered(model: Any, http_response: Any, context: dict[str, Any], **_: Any) -> None:
        seconds = time.perf_counter() - context["begun"]
        telemetry.called("s3", model.name, seconds, status=http_response.status_code)

    def failed(exception: Exception, context: dict[str, Any], event_name: str, **_: Any) -> None:
        seconds = time.perf_counter() - context["begun"]
        telemetry.called("s3", event_name.rpartition(".")[2], seconds, error=type(exception).__name__)

    events.register("before-call.s3", begun)
    events.register("after-call.s3", answered)
    events.register("after-call-error.s3", failed)


@contextmanager
def _unless(*codes: str, otherwise: Callable[[str], Exception] | None = None) -> Generator[None]:
    """Swallow the errors with these codes, since they are answers; or raise something else for them."""
    try:
        yield
    except ClientError as error:
        if _code(error) not in codes:
            raise
        if otherwise is not None:
            raise otherwise(_code(error)) from error


@contextmanager
def _errors(what: str) -> Generator[None]:
    """Everything that botocore and aiohttp raise becomes one of our errors."""
    try:
        yield
    except ClientError as error:
        raise _named(_code(error), what) from error
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ObjectStoreUnavailable(f"{what}: no answer ({type(error).__name__})") from error
