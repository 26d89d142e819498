"""What the readers of S3's bulk data share: how a request is addressed and signed, and what a refusal means."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from domain.errors import InfrastructureError, Misconfigured, ObjectStoreUnavailable

_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")
_GONE = ("NoSuchKey", "NoSuchVersion", "PreconditionFailed", "InvalidRange", "MethodNotAllowed", "")
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


@dataclass(frozen=True, slots=True)
class Range:
    """Some bytes of exactly one version of an object, and the buffer that they are to fill."""

    key: str
    version_id: str | None
    etag: str
    offset: int
    into: memoryview

    @property
    def query(self) -> str:
        """Query string of the GET."""
        return f"versionId={quote(self.version_id, safe='')}" if self.version_id is not None else ""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the GET."""
        end = self.offset + self.into.nbytes - 1
        return {"Range": f"bytes={self.offset}-{end}", "If-Match": f'"{self.etag}"'}


class Wire:
    """Addresses and signs requests to one S3 server: signature version 4, over everything but the payload.

    The payload's digest or ETag is checked by other means. 52 µs a request here; keeping the key of the day would save
    6 of them, less than the code is worth.
    """

    def __init__(self, *, endpoint: str, access_key: str, secret_key: str, region: str) -> None:
        parts = urlsplit(endpoint)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._base_path = parts.path.rstrip("/")
        self._credentials, self._region = Credentials(access_key, secret_key), region
        self._signer = S3SigV4Auth(self._credentials, "s3", region)
        self._config = Config(s3={"payload_signing_enabled": False})

    def request(
        self, method: str, bucket: str, key: str, query: str, headers: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """The target (path and query, percent-encoded) and the headers with those of the signature added."""
        target = self._target(bucket, key, query)
        request = AWSRequest(method=method, url=self.origin + target, headers=headers)
        request.context["client_config"] = self._config
        self._signer.add_auth(request)
        return target, dict(request.headers.items())

    def address(self, bucket: str, key: str) -> str:
        """Where an object is, without leave to do anything with it."""
        return self.origin + self._target(bucket, key, "")

    def link(self, method: str, bucket: str, key: str, query: str, expires_s: int) -> str:
        """A URL by which anybody can send the request for so long, whatever headers it has; it is a secret."""
        request = AWSRequest(method=method, url=self.origin + self._target(bucket, key, query))
        S3SigV4QueryAuth(self._credentials, "s3", self._region, expires=expires_s).add_auth(request)
        return str(request.url)

    def _target(self, bucket: str, key: str, query: str) -> str:
        return f"{self._base_path}/{bucket}/{quote(key, safe='/~')}" + (f"?{query}" if query else "")


def error_code(body: bytes) -> str:
    """S3's code in the body of an error; empty if there is none."""
    found = _CODE.search(body)
    return found.group(1).decode("utf-8", "replace") if found else ""


def refused(status: int, body: bytes, what: str) -> InfrastructureError:
    """The error for an answer that is no success, `what` being what was tried."""
    code = error_code(body)
    said = f"{what}: S3 answered {status} {code}".rstrip()
    return Misconfigured(said) if code in MISCONFIGURED else ObjectStoreUnavailable(said)


def check_range(status: int, body: bytes, key: str, what: str) -> None:
    """Judge the answer to a ranged read.

    Raises:
        ObjectChanged: the version is gone, has another ETag, or ends too early.
        ObjectStoreUnavailable: no success.
        Misconfigured: refused credentials, missing bucket.
    """
    if status == 206:
        return
    if status in (404, 405, 412, 416) and error_code(body) in _GONE:
        raise ObjectChanged(key)
    raise refused(status, body, what)
