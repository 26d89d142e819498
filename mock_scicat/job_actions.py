"""The `url` job action: telling somebody over HTTP that a job was created."""

import base64
import logging

import httpx

from .errors import job_refusal
from .validation import Document

_log = logging.getLogger(__name__)


class UrlAction:
    """Sends exactly what a job configuration like SwissOpenEM's sends (contract, "The `url` job action").

    It has no time-out of its own and does not retry. The job is stored before, and stays whatever comes of the call.

    Args:
        url: the target.
        username: for the Basic header.
        password: for the Basic header.
        transport: replaces the network, for tests.
    """

    def __init__(
        self, url: str, *, username: str, password: str, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url = url
        self._transport = transport
        credentials = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._headers = {
            "accept": "application/json",
            "content-type": "application/json",
            "authorization": f"Basic {credentials}",
            "user-agent": "node",
        }

    async def perform(self, job: Document) -> None:
        """Call the target and wait for its answer, however long that takes.

        Raises:
            ScicatError: 400 if the target cannot be reached; the target's own status if that is not 2xx.
        """
        # By hand, since the template has these very blanks.
        content = f'{{"id": "{job["id"]}", "type": "{job["type"]}"}}'
        try:
            # No time-out, as observed; not the environment's proxies, which node's fetch does not know either.
            async with httpx.AsyncClient(
                timeout=httpx.Timeout(None), trust_env=False, follow_redirects=True, transport=self._transport
            ) as client:
                response = await client.post(self._url, content=content, headers=self._headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            _log.warning("job %s: url action failed: %s", job["id"], type(error).__name__)
            raise job_refusal(
                f"Invalid job input. Job '{job['type']}' unable to perform action 'url' due to TypeError: fetch failed"
            ) from None
        _log.info("job %s: url action answered %d", job["id"], response.status_code)
        if not response.is_success:
            message = f"A remote URL call failed with response: {response.text}"
            raise job_refusal(message, status=response.status_code)
