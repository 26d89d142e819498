"""Digests: of chunks, of members, and the one that stands for a whole datablock."""

import base64
import hashlib
from collections.abc import Iterable

ALGORITHM = "sha256"


def known_algorithm(name: str) -> str:
    """The hashlib name of a catalogue's `chkAlg`, empty for one that hashlib cannot give a fixed-length digest of."""
    candidate = name.strip().lower().replace("sha-", "sha").replace("sha3-", "sha3_")
    usable = candidate in hashlib.algorithms_guaranteed and not candidate.startswith("shake")
    return candidate if usable else ""


def composite(chunk_digests: Iterable[bytes]) -> bytes:
    """The datablock's digest: sha256 over the concatenated raw chunk digests.

    It is what S3 calls the COMPOSITE checksum of an object whose parts are the chunks.
    """
    return hashlib.sha256(b"".join(chunk_digests)).digest()


def s3_composite(digest: bytes, chunks: int) -> str:
    """A datablock's digest as S3's HEAD gives it: base64 with the number of parts behind it."""
    return f"{base64.b64encode(digest).decode()}-{chunks}"


def b64(digest: bytes) -> str:
    """Standard base64, as S3 and tus headers want it."""
    return base64.b64encode(digest).decode()
