"""Users and their tokens: JWTs signed with HS256, as SciCat's local strategy gives them out."""

import base64
import binascii
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any, cast

from .config import Account
from .validation import Document


@dataclass(frozen=True)
class User:
    """Somebody who is logged in."""

    username: str
    email: str
    groups: tuple[str, ...]

    @property
    def id(self) -> str:
        """24 hex digits like a MongoDB id, always the same for a name."""
        return hashlib.sha256(self.username.encode()).hexdigest()[:24]

    def profile(self) -> Document:
        """The record that SciCat shows of a user; the groups are not in it."""
        return {"username": self.username, "email": self.email, "authStrategy": "local", "_id": self.id, "id": self.id}


class Accounts:
    """Checks passwords, gives out tokens and knows them again.

    Args:
        accounts: everybody who may log in.
        secret: the key of the signatures.
        ttl_s: how long a token is good, seconds.
    """

    def __init__(self, accounts: tuple[Account, ...], *, secret: str, ttl_s: int) -> None:
        self._passwords = {account.username: account.password for account in accounts}
        self._users = {a.username: User(a.username, a.email, a.groups) for a in accounts}
        self._secret = secret
        self.ttl_s = ttl_s

    def find(self, username: str) -> User | None:
        """The user of that name, or None."""
        return self._users.get(username)

    def find_by_id(self, user_id: str) -> User | None:
        """The user with that id, or None."""
        return next((user for user in self._users.values() if user.id == user_id), None)

    def check_password(self, username: str, password: str) -> User | None:
        """The user, if the password is his."""
        expected = self._passwords.get(username)
        if expected is None or not hmac.compare_digest(expected.encode(), password.encode()):
            return None
        return self._users[username]

    def token(self, user: User) -> str:
        """A token good for `ttl_s` from now. As in SciCat, the groups are not in it."""
        now_s = int(time.time())
        return sign(user.profile() | {"iat": now_s, "exp": now_s + self.ttl_s}, self._secret)

    def user_of(self, token: str) -> User | None:
        """The user of a token that is genuine and not expired, else None."""
        claims = verify(token, self._secret)
        if claims is None or not isinstance(claims.get("exp"), int) or claims["exp"] <= time.time():
            return None
        return self.find(str(claims.get("username")))


def sign(claims: Document, secret: str) -> str:
    """A JWT (RFC 7519) with HS256."""
    head = _encode(json.dumps({"alg": "HS256", "typ": "JWT"}, separators=(",", ":")).encode())
    body = _encode(json.dumps(claims, separators=(",", ":")).encode())
    return f"{head}.{body}.{_encode(_mac(f'{head}.{body}', secret))}"


def verify(token: str, secret: str) -> Document | None:
    """The claims of a JWT whose HS256 signature is right, else None; `exp` is the caller's to check."""
    try:
        head, body, signature = token.split(".")
        if not hmac.compare_digest(_decode(signature), _mac(f"{head}.{body}", secret)):
            return None
        header: Any = json.loads(_decode(head))
        claims: Any = json.loads(_decode(body))
    except (ValueError, binascii.Error):
        return None
    if not isinstance(header, dict) or cast("Document", header).get("alg") != "HS256" or not isinstance(claims, dict):
        return None
    return cast("Document", claims)


def _mac(text: str, secret: str) -> bytes:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
