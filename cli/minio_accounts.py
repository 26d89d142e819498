"""The local MinIO's account for download links, which may read the retrieval bucket and nothing else.

MinIO's admin API takes an import of accounts as a zip of JSON files, signed like any request to S3; its other calls
want their bodies encrypted in MinIO's own way. An import adds or replaces what it names.
"""

import io
import json
import zipfile
from typing import Any

import httpx
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from cli.processes import StackError
from settings import Settings

_POLICY = "download-links"


def links_policy(bucket: str) -> dict[str, Any]:
    """S3's policy for the account that signs download links."""
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [f"arn:aws:s3:::{bucket}/*"]}],
    }


async def prepare(settings: Settings) -> None:
    """Make the account of S3_LINK_USER, by the account of S3_USER, which must be MinIO's root.

    Raises:
        StackError: MinIO refuses, or does not answer.
    """
    user, password = settings.s3_link_user.get_secret_value(), settings.s3_link_password.get_secret_value()
    accounts: dict[str, Any] = {
        "policies": {_POLICY: links_policy(settings.s3_retrieval_bucket)},
        "users": {user: {"secretKey": password, "status": "enabled"}},
        "user_mappings": {user: {"version": 1, "policy": _POLICY}},
    }
    url = f"{settings.s3_endpoint}/minio/admin/v3/import-iam"
    body = _zipped(accounts)
    root = Credentials(settings.s3_user.get_secret_value(), settings.s3_password.get_secret_value())
    request = AWSRequest(method="PUT", url=url, data=body)
    S3SigV4Auth(root, "s3", settings.s3_region).add_auth(request)
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            answer = await http.put(url, content=body, headers=dict(request.headers.items()))
    except httpx.TransportError as error:
        raise StackError(f"MinIO does not answer when its accounts are made ({type(error).__name__}).") from error
    if not answer.is_success:
        raise StackError(f"MinIO refuses the account of S3_LINK_USER ({answer.status_code}); its log may say why.")


def _zipped(accounts: dict[str, Any]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        for name, content in accounts.items():
            files.writestr(f"iam-assets/{name}.json", json.dumps(content))
    return archive.getvalue()
