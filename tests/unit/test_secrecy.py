"""The search for secrets finds them: a search that finds nothing proves nothing by itself."""

import base64
import json
from pathlib import Path

import pytest

from tests.secrecy import SHAPES, Secrets

WORD = "qN7-uX0f_Zk3w9Lr"
URL = f"http://s3/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={'ab' * 32}"
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJhcmNoaXZlciJ9.c2lnbmF0dXJl"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (URL, "a presigned URL"),
        (URL.replace("&", "\\u0026"), "a presigned URL"),
        (f"b/k?X-Amz-Credential%3D{WORD}", "a presigned URL"),
        (json.dumps({"access_token": WORD}), "a token's answer"),
        (json.dumps(json.dumps({"access_token": WORD})), "a token's answer"),
        (f"IssuedToken(refresh_token='{WORD}')", "a token's answer"),
        (f"grant_type=refresh_token&refresh_token={WORD}", "a token's answer"),
        ("{'Authorization': 'Basic abc'}", "a header with credentials"),
        (f"authorization: Bearer {WORD}", "a header with credentials"),
        (f"Bearer {JWT}", "a bearer token"),
        (f"Basic {b64(WORD)}", "Basic credentials"),
        ("AWS4-HMAC-SHA256 Credential=archiver/2026", "a signature of S3"),
        (f"the token {JWT} has run out", "a JSON Web Token"),
        (f"http://root:{WORD}@minio:9000", "an account in a URL"),
    ],
)
def test_every_shape_is_found_also_in_base64(text: str, shape: str) -> None:
    secrets = Secrets({})
    assert shape in secrets.found_in(text)
    for before in ("", "x", "xy", "xyz"):
        assert shape in secrets.found_in(f'{{"data": "{before}{b64(" " * 30 + text)}"}}')
    assert shape in secrets.found_in(b64(json.dumps({"script": b64(" " * 30 + text)})))
    assert shape in SHAPES


def test_known_values_are_found(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    for name, value in {"s3_user": "archiver", "s3_password": WORD, "lts_token": WORD[::-1]}.items():
        (tmp_path / "secrets" / name).write_text(f"{value}\n")
    secrets = Secrets.of_stack(tmp_path)
    assert secrets.found_in(b"\x00\x12" + WORD.encode() + b"\xff") == {"s3_password"}
    assert secrets.found_in(f"x{b64(' ' * 30 + WORD)}") == {"s3_password"}
    assert secrets.found_in(WORD[::-1]) == {"lts_token"}
    assert "s3_password in a Basic header" in secrets.found_in(b64(f"archiver:{WORD}"))
    assert secrets.found_in("the account archiver is refused") == set()


def test_what_is_no_secret_is_not_found() -> None:
    plain = "20.500.11935/0d4c is archived; sha256 9f86d081884c7d659a2feaa0c55ad015; http://127.0.0.1:9000/retrieval/k"
    plain += ' {"access_token": {"type": "string"}, "required": ["access_token", "refresh_token"]}'
    assert Secrets({}).found_in(f"{plain} {b64(plain)}") == set()
