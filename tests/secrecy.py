"""Looks for secrets where none may be: those that are known by their value, all others by their shape.

It shares nothing with `domain/redaction.py`, so that what one overlooks the other need not.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

SHAPES = {
    "a presigned URL": rb"x-amz-(signature|credential|security-token)",
    "a token's answer": rb"(access|refresh|id)_token[\\\\\"']*(\s*[:=]\s*|%3d)[\\\\\"']*[a-z0-9._~+/-]{12}",
    "a header with credentials": rb"authorization\W{1,5}(basic|bearer|aws4)",
    "a bearer token": rb"bearer [a-z0-9._~+/-]{20}",
    "Basic credentials": rb"basic [a-z0-9+/]{12}",
    "a signature of S3": rb"aws4-hmac-sha256 credential",
    "a JSON Web Token": rb"eyj[a-z0-9_-]{10,}\.[a-z0-9_-]{10,}\.",
    "an account in a URL": rb"://[^\s/:@\"']+:[^\s/:@\"']+@",
}

_SHAPES = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in SHAPES.items()}
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{40,}")

SHORTEST = 12
"""Shorter words stand in many a text by chance."""


class Secrets:
    """What is looked for."""

    def __init__(self, known: Mapping[str, str]) -> None:
        """Take the values that are known, by what they are; short ones do not count."""
        self._known = {name: value.encode() for name, value in known.items() if len(value) >= SHORTEST}

    @classmethod
    def of_stack(cls, folder: Path, **more: str) -> "Secrets":
        """Those of a local stack, as its files have them and in Basic headers, and some more; names are none."""
        words = {path.name: path.read_text().strip() for path in (folder / "secrets").iterdir()}
        users = {name.rpartition("_")[0]: words.pop(name) for name in list(words) if "_user" in name}
        basic = {
            f"{stem}_password in a Basic header": f"{user}:{words[f'{stem}_password']}" for stem, user in users.items()
        }
        encoded = {name: base64.b64encode(pair.encode()).decode() for name, pair in basic.items()}
        return cls(words | encoded | more)

    def found_in(self, content: bytes | str) -> set[str]:
        """What of it stands in a text or in anything else, plainly or in base64."""
        data = content.encode() if isinstance(content, str) else content
        return {name for layer in _layers(data) for name in self._in(layer)}

    def _in(self, data: bytes) -> Iterator[str]:
        yield from (name for name, value in self._known.items() if value in data)
        yield from (name for name, shape in _SHAPES.items() if shape.search(data))


def _layers(data: bytes, depth: int = 2) -> Iterator[bytes]:
    """The bytes, and what they hold in base64, wherever in a longer word that begins."""
    yield data
    if not depth:
        return
    for run in _BASE64.findall(data):
        word = run.translate(bytes.maketrans(b"-_", b"+/"))
        for start in range(4):
            part = word[start:]
            try:
                decoded = base64.b64decode(part + b"A" * (-len(part) % 4))
            except binascii.Error:
                continue
            yield from _layers(decoded, depth - 1)
