"""A retrieval that goes on where another one ended: what is there counts only if its digest is right."""

import asyncio
import base64
import hashlib
import random
from typing import Any

import botocore.session
import pytest

from domain import names
from tests.faults.site import BUFFERS, CHUNK, Blow, Site, is_part
from tests.lab import Lab, some_bytes

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(180)]

FILES = {f"movie{n}.tif": some_bytes(9_000_000, n) for n in range(6)}


async def archived(site: Site) -> tuple[str, str, int]:
    """A dataset in one datablock: pid, path and size."""
    pid = await site.lab.dataset(FILES)
    await site.good(await site.archive(pid))
    [(path, size)] = (await site.lab.on_lts(pid)).items()
    site.forget()
    return pid, path, size


@pytest.mark.long
@pytest.mark.fault(
    "a worker is killed in the midst of a retrieval", "delivered parts are not read again; no pin is left"
)
async def test_delivered_parts_are_not_read_again_after_a_kill(site: Site) -> None:
    pid, _, tar_bytes = await archived(site)
    place = random.Random(1).randrange(5 * CHUNK, 9 * CHUNK)  # noqa: S311

    job = await site.strike([Blow("worker-retrieval", is_part, "in", place)], lambda: site.retrieve(pid))
    await site.good(job)

    assert tar_bytes <= site.lts_read() <= tar_bytes + BUFFERS * CHUNK
    assert tar_bytes <= site.delivered() <= tar_bytes + BUFFERS * CHUNK
    assert (await site.lab.lts("GET", "/admin/state")).json()["pins"] == []
    assert await site.lab.unpacked(pid) == FILES


@pytest.mark.parametrize("checksums", [{"ChecksumAlgorithm": "SHA256"}, {}], ids=["with-digests", "without"])
@pytest.mark.fault(
    "somebody left an upload in the retrieval bucket", "parts with the right digest are used, the others are not"
)
async def test_a_stale_upload_is_trusted_only_where_its_digests_are_right(
    site: Site, checksums: dict[str, str]
) -> None:
    pid, path, tar_bytes = await archived(site)
    first = (await site.lab.lts("GET", f"/files/{path}")).content[:CHUNK]
    site.forget()
    await asyncio.to_thread(_upload_parts, site.lab, path, {1: first, 2: b"\0" * CHUNK, 40: b"end"}, checksums)

    await site.good(await site.retrieve(pid))

    assert site.lts_read() == tar_bytes - (CHUNK if checksums else 0)
    assert await site.lab.unpacked(pid) == FILES
    assert await site.lab.objects.open_uploads(site.lab.stack.settings.s3_retrieval_bucket, path, [path]) == []


@pytest.mark.fault("a worker is killed while it restores a single file", "the next attempt fills the same upload")
async def test_an_upload_of_a_single_file_that_was_left_open_is_filled_and_closed(site: Site) -> None:
    pid, _, _ = await archived(site)
    key = names.restored_key(pid, "movie1.tif")
    await asyncio.to_thread(_upload_parts, site.lab, key, {1: b"\0" * CHUNK}, {"ChecksumAlgorithm": "SHA256"})

    job = await site.lab.user.create_job("retrieve", [pid], files={pid: ["movie1.tif"]})
    await site.good(job)

    [entry] = (await site.lab.ended(job))["jobResultObject"]["result"]
    assert (await site.lab.http.get(entry["url"])).content == FILES["movie1.tif"]
    assert await site.lab.objects.open_uploads(site.lab.stack.settings.s3_retrieval_bucket, key, [key]) == []


def _upload_parts(lab: Lab, key: str, parts: dict[int, bytes], checksums: dict[str, str]) -> None:
    """As somebody else, or a former version of ours, may have left them."""
    settings = lab.stack.settings
    session = botocore.session.get_session()
    s3: Any = session.create_client(
        "s3",
        settings.s3_region,
        endpoint_url=f"http://127.0.0.1:{lab.stack.ports.minio}",
        aws_access_key_id=settings.s3_user.get_secret_value(),
        aws_secret_access_key=settings.s3_password.get_secret_value(),
    )
    named = {"Bucket": settings.s3_retrieval_bucket, "Key": key}
    upload_id = s3.create_multipart_upload(**named, **checksums)["UploadId"]
    for number, body in parts.items():
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        extra = {"ChecksumSHA256": digest} if checksums else {}
        s3.upload_part(**named, UploadId=upload_id, PartNumber=number, Body=body, **extra)
    s3.close()
