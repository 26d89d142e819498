"""Uploads of single objects by people who hold a URL: their beginning, completion and end.

The bytes go from them to S3; S3 compares each part with the digest that comes with it, and the whole with the parts.
"""

import asyncio
import binascii
from collections.abc import Sequence
from urllib.parse import quote

from clients.s3 import ObjectStore
from clients.s3_bulk import PartRefused, UploadVanished
from clients.s3_wire import Wire
from domain.checksum import b64, composite
from domain.errors import UploadRefused

_AT_A_STRETCH = 50
"""Links that are signed before others get their turn: some milliseconds."""

Part = tuple[int, str, str]
"""Number, ETag without quotes, SHA-256 in base64."""


class LandingZone:
    """The bucket of raw files. Every method raises the errors of `ObjectStore`."""

    def __init__(self, objects: ObjectStore, bucket: str, outside: Wire, *, expires_s: int) -> None:
        """Take a store, and how S3 is addressed by those who upload.

        Args:
            objects: the store as this process sees it.
            bucket: the landing zone's bucket.
            outside: addresses and signs for S3 as the users dial it.
            expires_s: life of a URL.
        """
        self._objects, self._bucket, self._outside, self._expires_s = objects, bucket, outside, expires_s

    async def begin(self, key: str, parts: int) -> tuple[str, list[str]]:
        """Begin an upload: its id, and one secret URL for each part; one part alone is put whole and has no id."""
        if parts == 1:
            return "", [self._outside.link("PUT", self._bucket, key, "", self._expires_s)]
        upload_id = await self._objects.create_multipart(self._bucket, key)

        links: list[str] = []
        for number in range(1, parts + 1):
            query = f"partNumber={number}&uploadId={quote(upload_id, safe='')}"
            links.append(self._outside.link("PUT", self._bucket, key, query, self._expires_s))
            if number % _AT_A_STRETCH == 0:
                await asyncio.sleep(0)
        return upload_id, links

    async def complete(self, key: str, upload_id: str, parts: Sequence[Part], composite_b64: str) -> str:
        """Make an object of the parts, by number; return its address. A repeat finds the object and says the same.

        Raises:
            UploadRefused: S3 has other parts, or neither the upload nor an object made of these parts.
        """
        if not upload_id:
            await self._compare_whole(key, parts, composite_b64)
            return self._outside.address(self._bucket, key)
        try:
            location = await self._objects.complete_multipart(self._bucket, key, upload_id, parts, composite_b64)
        except PartRefused as error:
            raise UploadRefused(str(error), error.code) from error
        except UploadVanished as error:
            head = await self._objects.head(self._bucket, key)
            if head is None or head.composite_sha256 != f"{composite_b64}-{len(parts)}":
                raise UploadRefused(f"{error}, and there is no such object", "NoSuchUpload") from error
            location = ""
        return location or self._outside.address(self._bucket, key)

    async def _compare_whole(self, key: str, parts: Sequence[Part], composite_b64: str) -> None:
        """A file of exactly one part was put whole, so there is nothing to complete, only to compare."""
        head = await self._objects.head(self._bucket, key)
        if head is None:
            raise UploadRefused(f"completing {key!r}: no upload id is given and there is no such object", "NoSuchKey")
        if len(parts) != 1 or parts[0][1:] != (head.etag, head.composite_sha256):
            raise UploadRefused(f"completing {key!r}: the object is made of other bytes", "InvalidPart")
        if composite_b64 != b64(composite([binascii.a2b_base64(parts[0][2])])):
            raise UploadRefused(
                f"completing {key!r}: the digest is not the one over the digest of the one part",
                "XAmzContentChecksumMismatch",
            )

    async def abort(self, key: str, upload_id: str) -> None:
        """Forget an upload and its parts; one that is not known, or has no id, is fine."""
        if upload_id:
            await self._objects.abort_multipart(self._bucket, key, upload_id)
