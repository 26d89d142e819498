"""What uploaders say of their bytes: SHA-256 in base64, of a part and of a whole made of parts."""

import hashlib

from domain.checksum import b64, composite


def sha256_b64(data: bytes) -> str:
    """Of one part."""
    return b64(hashlib.sha256(data).digest())


def composite_b64(*parts: bytes) -> str:
    """Of the digests of all parts, as S3 takes it."""
    return b64(composite(hashlib.sha256(part).digest() for part in parts))
