"""The two S3 calls that move bulk bytes, blocking, for threads: a ranged GET into a buffer, and a part upload.

They are sent by `clients.bulk`: aioboto3 needs five times the CPU per byte.
"""

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from clients.bulk import Answer, ConnectionPool, TransferFailed
from clients.s3_wire import Range, Wire, check_range, error_code, refused
from domain.errors import ObjectStoreUnavailable

_DAMAGED = ("XAmzContentChecksumMismatch", "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch")


class PartRefused(Exception):
    """S3 received other bytes than the digest says, or does not accept the parts named; nothing of them counts."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
        """S3's word for it, where it said one."""


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
        self._wire = Wire(endpoint=endpoint, access_key=access_key, secret_key=secret_key, region=region)
        self._pool = ConnectionPool(
            endpoint, ca_file=ca_file, connect_timeout_s=connect_timeout_s, timeout_s=timeout_s, max_idle=max_idle
        )

    def read_range(self, bucket: str, wanted: Range) -> None:
        """Fill a range's buffer with the bytes of exactly this version with exactly this ETag.

        Raises:
            ObjectChanged: the version is gone, has another ETag, or ends too early.
            ObjectStoreUnavailable: no complete answer.
            Misconfigured: refused credentials, missing bucket.
        """
        if not wanted.into.nbytes:
            return
        what = f"reading {wanted.key!r} of bucket {bucket}"
        answer = self._ask(what, "GET", bucket, wanted.key, wanted.query, wanted.headers, into=wanted.into)
        check_range(answer.status, answer.body, wanted.key, what)

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
        code = error_code(answer.body)
        if code in _DAMAGED:
            raise PartRefused(f"{what}: other bytes arrived than were sent")
        if code == "NoSuchUpload":
            raise UploadVanished(f"{what}: the upload is unknown")
        raise refused(answer.status, answer.body, what)

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
        target, signed = self._wire.request(method, bucket, key, query, headers)
        try:
            return self._pool.request(method, target, signed, body=body, into=into, repeatable=True)
        except TransferFailed as error:
            raise ObjectStoreUnavailable(f"{what}: {error}") from error
