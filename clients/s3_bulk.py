"""The two S3 calls that move bulk bytes, blocking, for threads: a ranged GET into a buffer, and a part upload.

They are signed by botocore's own signer and sent by `clients.bulk`: aioboto3 needs five times the CPU per byte.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from clients.bulk import Answer, ConnectionPool, TransferFailed
from domain.errors import InfrastructureError, Misconfigured, ObjectStoreUnavailable

_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")
_GONE = ("NoSuchKey", "NoSuchVersion", "PreconditionFailed", "InvalidRange", "MethodNotAllowed")
_DAMAGED = ("XAmzContentChecksumMismatch", "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch")
MISCONFIGURED = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "NoSuchBucket",
    "InvalidBucketName",
    "AuthorizationHeaderMalformed",
    "RequestTimeTooSkewed",
)
"""S3 codes that an operator has to mend."""


class ObjectChanged(Exception):
    """The object version that was asked for is gone, has another ETag, or is shorter."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the object {key!r} is not the one that was looked at before")
        self.key = key


class PartRefused(Exception):
    """S3 received other bytes than the digest says, or does not accept the parts named; nothing of them counts."""


class UploadVanished(Exception):
    """The multipart upload is unknown: aborted, or completed already."""


class BulkObjects:
    """Ranged reads and part uploads for any number of threads at once."""

    def __init__(
        self,
        *,
        endpoint: str,
        access_key: str,
        secret_key: str,
        region: str,
        ca_file: Path | None = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 60.0,
        max_idle: int = 32,
    ) -> None:
        """Connect to nothing yet.

        Args:
            endpoint: address of S3; buckets are named in the path.
            access_key: S3 account.
            secret_key: its secret.
            region: part of every signature.
            ca_file: certificates to trust instead of the system's.
            connect_timeout_s: for the connection and the TLS handshake.
            timeout_s: longest wait for the next bytes in either direction.
            max_idle: connections kept open between requests.
        """
        parts = urlsplit(endpoint)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._base_path = parts.path.rstrip("/")
        self._signer = _Signer(access_key, secret_key, region)
        self._pool = ConnectionPool(
            endpoint, ca_file=ca_file, connect_timeout_s=connect_timeout_s, timeout_s=timeout_s, max_idle=max_idle
        )

    def read_range(
        self, bucket: str, key: str, *, version_id: str | None, etag: str, offset: int, into: memoryview
    ) -> None:
        """Fill `into` with the bytes from `offset` on, of exactly this version with exactly this ETag.

        Raises:
            ObjectChanged: the version is gone, has another ETag, or ends too early.
            ObjectStoreUnavailable: no complete answer.
            Misconfigured: refused credentials, missing bucket.
        """
        if not into.nbytes:
            return
        query = f"versionId={quote(version_id, safe='')}" if version_id is not None else ""
        headers = {"Range": f"bytes={offset}-{offset + into.nbytes - 1}", "If-Match": f'"{etag}"'}
        what = f"reading {key!r} of bucket {bucket}"
        answer = self._ask(what, "GET", bucket, key, query, headers, into=into)
        if answer.status == 206:
            return
        if answer.status in (404, 405, 412, 416) and _code(answer) in (*_GONE, ""):
            raise ObjectChanged(key)
        raise _refused(answer, what)

    def upload_part(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
        size: int,
        body: Iterable[memoryview],
        sha256_b64: str,
    ) -> str:
        """Send one part and return its ETag; the part counts only if its bytes have this digest.

        A body that can be iterated again (a list) is sent again over a new connection when a kept one turns out dead.

        Raises:
            PartRefused: other bytes arrived than the digest says.
            UploadVanished: the upload is unknown.
            ObjectStoreUnavailable: no success.
            Misconfigured: refused credentials, missing bucket.
        """
        query = f"partNumber={number}&uploadId={quote(upload_id, safe='')}"
        headers = {"Content-Length": str(size), "x-amz-checksum-sha256": sha256_b64}
        what = f"sending part {number} of {key!r} to bucket {bucket}"
        answer = self._ask(what, "PUT", bucket, key, query, headers, body=body)
        if answer.status == 200:
            return answer.headers.get("etag", "").strip('"')
        code = _code(answer)
        if code in _DAMAGED:
            raise PartRefused(f"{what}: other bytes arrived than were sent")
        if code == "NoSuchUpload":
            raise UploadVanished(f"{what}: the upload is unknown")
        raise _refused(answer, what)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def _ask(
        self,
        what: str,
        method: str,
        bucket: str,
        key: str,
        query: str,
        headers: dict[str, str],
        *,
        body: Iterable[memoryview] | None = None,
        into: memoryview | None = None,
    ) -> Answer:
        target = f"{self._base_path}/{bucket}/{quote(key, safe='/~')}" + (f"?{query}" if query else "")
        signed = self._signer.sign(method, self._origin + target, headers)
        try:
            return self._pool.request(method, target, signed, body=body, into=into, repeatable=True)
        except TransferFailed as error:
            raise ObjectStoreUnavailable(f"{what}: {error}") from error


class _Signer(S3SigV4Auth):
    """Signature version 4 in headers, over everything but the payload, whose digest or ETag is checked by other means.

    52 µs a request here; keeping the key of the day would save 6 of them, less than the code is worth.
    """

    def __init__(self, access_key: str, secret_key: str, region: str) -> None:
        super().__init__(Credentials(access_key, secret_key), "s3", region)
        self._config = Config(s3={"payload_signing_enabled": False})

    def sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers with those of the signature added."""
        request = AWSRequest(method=method, url=url, headers=headers)
        request.context["client_config"] = self._config
        self.add_auth(request)
        return dict(request.headers.items())


def _code(answer: Answer) -> str:
    found = _CODE.search(answer.body)
    return found.group(1).decode("utf-8", "replace") if found else ""


def _refused(answer: Answer, what: str) -> InfrastructureError:
    code = _code(answer)
    said = f"{what}: S3 answered {answer.status} {code}".rstrip()
    return Misconfigured(said) if code in MISCONFIGURED else ObjectStoreUnavailable(said)
