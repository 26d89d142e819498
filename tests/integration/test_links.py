"""Download links and the account that signs them, which may read the retrieval bucket and nothing else."""

from urllib.parse import parse_qs, urlsplit

import pytest

from clients.s3 import ObjectStore
from domain.errors import Misconfigured
from tests.lab import Lab


async def test_links_are_signed_by_an_account_that_may_only_fetch(lab: Lab) -> None:
    settings = lab.stack.settings
    pid = await lab.archived({"a": b"a"})
    job = await lab.ended(await lab.retrieve(pid))
    [entry] = job["jobResultObject"]["result"]

    url: str = entry["url"]
    [credential] = parse_qs(urlsplit(url).query)["X-Amz-Credential"]
    assert credential.split("/")[0] == settings.s3_link_user.get_secret_value() != settings.s3_user.get_secret_value()
    assert (await lab.http.get(url)).status_code == 200
    for method in ("PUT", "DELETE"):
        assert (await lab.http.request(method, url)).status_code == 403
    bucket, key = settings.s3_retrieval_bucket, entry["archiveId"]
    async with ObjectStore.connect(**settings.s3_links) as links:
        assert await links.get(bucket, key)
        refused = [
            links.put(bucket, key, b"other bytes"),
            links.delete_objects(bucket, [key]),
            links.get(settings.s3_landingzone_bucket, key),
            links.get(settings.s3_state_bucket, key),
            anext(aiter(links.list_versions(bucket, ""))),
            links.ensure_bucket("a-new-one", versioned=False),
        ]
        for forbidden in refused:
            with pytest.raises(Misconfigured):
                await forbidden
    assert await lab.objects.exists(bucket, key)
