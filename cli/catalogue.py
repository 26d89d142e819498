"""SciCat as its users' programs see it: log in, register a dataset and its files, post a job, look at it.

Independent of `clients/scicat.py`, which is the *service's* way of talking to SciCat: what one gets wrong the other
does not repeat. REST v3, as SciCat's own Python client and the Ingestor use it.
"""

import os
import ssl
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import httpx

Document = dict[str, Any]

TIMEOUT_S = 60.0
"""SciCat answers POST jobs only when the archiver has answered it, so this is generous."""

_BEGINNING = 300
"""Characters of a foreign answer that are shown."""


class OutOfReach(Exception):
    """A service does not answer, answers with a fault of its own, or does not let us in; a sentence for people."""


class Refused(Exception):
    """A service answered, and its answer is no; a sentence for people."""

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text)
        self.status = status


class UserCatalogue:
    """SciCat for one user; logs in at the first call and once more when a token has run out.

    Args:
        url: SciCat's address with the API prefix, e.g. `http://127.0.0.1:3000/api/v3`.
        user: name of a local SciCat account.
        password: its password.
        token: one of SciCat's, of somebody who logged in elsewhere; then name and password may be empty.
        transport: replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        *,
        token: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._user, self._password = user, password
        self._token = token
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=foreign(url),
            verify=trusted(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def token(self, *, fresh: bool = False) -> str:
        """SciCat's token, for others who ask SciCat whom it belongs to; `fresh`: logged in for now if we can.

        Raises:
            OutOfReach, Refused: the login fails.
        """
        if not self._token or (fresh and self._password):
            self._token = await self._log_in()
        return self._token

    async def user_name(self) -> str:
        """Name of the user's account."""
        profile = cast(Document, (await self._call("GET", "users/my/identity")).get("profile") or {})
        return str(profile.get("username") or self._user)

    async def who_am_i(self) -> tuple[str, list[str]]:
        """E-mail address and groups of the user."""
        profile = cast(Document, (await self._call("GET", "users/my/identity")).get("profile") or {})
        return str(profile.get("email", "")), [str(group) for group in profile.get("accessGroups") or ()]

    async def create_dataset(self, dataset: Mapping[str, Any]) -> str:
        """Register a dataset and return the pid that SciCat gives it."""
        return str((await self._call("POST", "datasets", dataset))["pid"])

    async def add_files(self, pid: str, files: Sequence[Mapping[str, Any]], *, algorithm: str) -> None:
        """Register files (at most some 20,000: SciCat's limit is 16 MB a body) as one original datablock."""
        block = {"size": sum(int(f["size"]) for f in files), "chkAlg": algorithm, "dataFileList": list(files)}
        await self._call("POST", f"datasets/{_segment(pid)}/origdatablocks", block)

    async def files(self, pid: str) -> dict[str, int]:
        """Size in bytes of each file that is registered for a dataset, by path."""
        blocks = cast("list[Document]", await self._send("GET", f"datasets/{_segment(pid)}/origdatablocks"))
        entries = [entry for block in blocks for entry in block.get("dataFileList") or ()]
        # the Ingestor lists folders beside the files in them
        return {str(e["path"]): int(e["size"]) for e in entries if not str(e.get("perm", "")).startswith("d")}

    async def set_lifecycle(self, pid: str, fields: Mapping[str, Any]) -> None:
        """Change these fields of a dataset's life cycle and no other."""
        # the sub-resource merges; a PATCH of the dataset itself would reset what is not sent
        await self._call("PATCH", f"datasets/{_segment(pid)}/datasetlifecycle", fields)

    async def dataset(self, pid: str) -> Document:
        """The dataset as SciCat holds it."""
        return await self._call("GET", f"datasets/{_segment(pid)}")

    async def datablocks(self, pid: str) -> list[Document]:
        """The archived datablocks that are registered for a dataset."""
        return cast("list[Document]", await self._send("GET", f"datasets/{_segment(pid)}/datablocks"))

    async def create_job(
        self, kind: str, pids: Sequence[str], email: str = "", *, files: Mapping[str, Sequence[str]] | None = None
    ) -> str:
        """Ask for an archive or a retrieval and return the job's id; `files` names single ones of a pid's."""
        listed = [{"pid": pid, "files": list((files or {}).get(pid, ()))} for pid in pids]
        job: Document = {"type": kind, "jobParams": {}, "datasetList": listed}
        if email:
            job["emailJobInitiator"] = email
        return str((await self._call("POST", "jobs", job))["id"])

    async def job(self, job_id: str) -> Document:
        """The job as SciCat holds it."""
        return await self._call("GET", f"jobs/{_segment(job_id)}")

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Document:
        answer = await self._send(method, path, body)
        if not isinstance(answer, dict):
            raise OutOfReach(f"SciCat answered {method} {path} with something else than an object")
        return cast(Document, answer)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> object:
        """Call SciCat.

        Raises:
            OutOfReach: no answer, 5xx, or the account is refused.
            Refused: 4xx.
        """
        fresh = not self._token
        if fresh:
            self._token = await self._log_in()
        answer = await self._request(method, path, body)
        if answer.status_code in (401, 403) and not fresh and self._password:
            # an expired token is a 403 too; the one try with a fresh token tells
            self._token = await self._log_in()
            answer = await self._request(method, path, body)
        if answer.status_code == 401 and not self._password:
            raise OutOfReach("SciCat does not take the token in SCICAT_TOKEN: log in there and copy a fresh one")
        return _content(answer, f"{method} {path}")

    async def _log_in(self) -> str:
        self._token = ""
        if not self._user:
            raise OutOfReach("SciCat wants to know who you are: set SCICAT_USER and SCICAT_PASSWORD, or SCICAT_TOKEN")
        answer = await self._request("POST", "auth/login", {"username": self._user, "password": self._password})
        if answer.status_code == 401:
            raise OutOfReach(f"SciCat does not know the user {self._user!r} with this password")
        content = _content(answer, "POST auth/login")
        return str(cast(Document, content).get("access_token", "")) if isinstance(content, dict) else ""

    async def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            return await self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise OutOfReach(f"SciCat at {self._http.base_url} does not answer: {_reason(error)}") from None


def foreign(url: str) -> bool:
    """Whether a URL leads away from this machine; only there are the environment's proxies asked."""
    return httpx.URL(url).host not in ("127.0.0.1", "localhost", "::1")


def trusted() -> ssl.SSLContext:
    """The certificate authorities that commands trust: those of CA_FILE in the environment, else the system's.

    Raises:
        OutOfReach: CA_FILE cannot be read.
    """
    ca_file = os.environ.get("CA_FILE") or None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # an SSLError is one
        raise OutOfReach(f"CA_FILE names {ca_file}, which cannot be read as certificates") from error


def _segment(text: str) -> str:
    """A pid as one segment of a path: its slash must be `%2F`."""
    return quote(text, safe="")


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def _content(answer: httpx.Response, what: str) -> object:
    if answer.is_success:
        try:
            return answer.json()
        except ValueError:
            raise OutOfReach(f"SciCat answered {what} with something else than JSON") from None
    said = f"SciCat answered {what} with {answer.status_code}: {_sentence(answer)}"
    if answer.status_code >= 500:
        raise OutOfReach(said)
    raise Refused(said, status=answer.status_code)


def _sentence(answer: httpx.Response) -> str:
    """What an error body says; SciCat has it in `message`, as a text or as a list."""
    try:
        content: object = answer.json()
    except ValueError:
        content = answer.text
    if isinstance(content, dict):
        content = cast(Document, content).get("message") or cast(Document, content)
    text = "; ".join(str(part) for part in cast("list[object]", content)) if isinstance(content, list) else str(content)
    return text if len(text) <= _BEGINNING else text[:_BEGINNING] + "…"
