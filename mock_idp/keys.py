"""The keys of the realm, and tokens signed with them: JWTs (RFC 7519) by RS256, keys as RFC 7517 shows them."""

import base64
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

Document = dict[str, Any]

_BITS = 2048


class Keys:
    """The signing keys, the last one active, and the secret of the refresh tokens, which nobody else has to check."""

    def __init__(self, path: Path | None) -> None:
        """Read the file, or invent keys and write it."""
        self._path = path
        self._encryption = rsa.generate_private_key(public_exponent=65537, key_size=_BITS)
        if path is not None and path.exists():
            kept = json.loads(path.read_text())
            self._secret = base64.b64decode(kept["secret"])
            self._keys = [_read(pem) for pem in kept["keys"]]
        else:
            self._secret = secrets.token_bytes(32)
            self._keys: list[rsa.RSAPrivateKey] = []
            self.rotate(forget=True)

    def rotate(self, *, forget: bool) -> str:
        """Sign with a new key from now on; tokens of the old ones stay good unless these are forgotten.

        Returns:
            The new key's id.
        """
        new = rsa.generate_private_key(public_exponent=65537, key_size=_BITS)
        self._keys = [new] if forget else [*self._keys, new]
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"secret": base64.b64encode(self._secret).decode(), "keys": [_write(key) for key in self._keys]}
            with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(kept, file)
        return _kid(new)

    def published(self) -> Document:
        """The JWKS; as Keycloak does, with a key for encryption among those that sign."""
        signing = [_published(key, use="sig", algorithm="RS256") for key in self._keys]
        return {"keys": [*signing, _published(self._encryption, use="enc", algorithm="RSA-OAEP")]}

    def sign(self, claims: Document) -> str:
        """An access token."""
        key = self._keys[-1]
        text = _text({"alg": "RS256", "typ": "JWT", "kid": _kid(key)}, claims)
        return f"{text}.{_encode(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def sign_refresh(self, claims: Document) -> str:
        """A refresh token: HS512, for this provider's eyes only."""
        text = _text({"alg": "HS512", "typ": "JWT"}, claims)
        return f"{text}.{_encode(self._mac(text))}"

    def read_refresh(self, token: str) -> Document | None:
        """The claims of a refresh token of this provider, else None; `exp` is the caller's to check."""
        text, _, signature = token.rpartition(".")
        try:
            if not hmac.compare_digest(_decode(signature), self._mac(text)):
                return None
            return cast("Document", json.loads(_decode(text.partition(".")[2])))
        except ValueError:
            return None

    def _mac(self, text: str) -> bytes:
        return hmac.new(self._secret, text.encode(), hashlib.sha512).digest()


def _published(key: rsa.RSAPrivateKey, *, use: str, algorithm: str) -> Document:
    numbers = key.public_key().public_numbers()
    return {
        "kid": _kid(key),
        "kty": "RSA",
        "alg": algorithm,
        "use": use,
        "n": _encode(numbers.n.to_bytes(_BITS // 8)),
        "e": _encode(numbers.e.to_bytes(3)),
    }


def _kid(key: rsa.RSAPrivateKey) -> str:
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _encode(hashlib.sha256(public).digest())


def _write(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _read(pem: str) -> rsa.RSAPrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("the file of the keys holds a key of another kind")
    return key


def _text(header: Document, claims: Document) -> str:
    return ".".join(_encode(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
