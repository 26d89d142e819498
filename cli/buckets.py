"""The buckets that the service keeps its objects in."""

from typing import TYPE_CHECKING

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from cli.setup import SetupError
from settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client


async def prepare(settings: Settings) -> list[str]:
    """Make the three buckets, private as S3 makes them; turn versioning on for the landing zone.

    Raises:
        SetupError: S3 refuses, or does not answer.
    """
    session = aioboto3.Session()
    done: list[str] = []
    try:
        async with session.client(  # pyright: ignore[reportUnknownMemberType] - only S3's stubs are installed
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_user.get_secret_value(),
            aws_secret_access_key=settings.s3_password.get_secret_value(),
            verify=str(settings.ca_file) if settings.ca_file else None,
            config=AioConfig(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}, connect_timeout=10),
        ) as s3:
            for bucket in (settings.s3_landingzone_bucket, settings.s3_retrieval_bucket, settings.s3_state_bucket):
                if await _make_bucket(s3, bucket, settings.s3_region):
                    done.append(f"Made the bucket {bucket}.")
            # The archive pins an object's version before it reads and frees just that one.
            if (await s3.get_bucket_versioning(Bucket=settings.s3_landingzone_bucket)).get("Status") != "Enabled":
                await s3.put_bucket_versioning(
                    Bucket=settings.s3_landingzone_bucket, VersioningConfiguration={"Status": "Enabled"}
                )
                done.append(f"Turned versioning on for {settings.s3_landingzone_bucket}.")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown error")
        raise SetupError(
            f"S3 at {settings.s3_endpoint} refuses {error.operation_name} ({code}): "
            "check S3_USER, S3_PASSWORD and that account's rights."
        ) from error
    except BotoCoreError as error:
        raise SetupError(f"S3 does not answer at {settings.s3_endpoint}: check S3_ENDPOINT and CA_FILE.") from error
    return done


async def _make_bucket(s3: "S3Client", bucket: str, region: str) -> bool:
    try:
        await s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
            raise
    else:
        return False
    try:
        if region == "us-east-1":  # the one region that S3 does not let one name here
            await s3.create_bucket(Bucket=bucket)
        else:
            # Regions of other makers' S3 are not in Amazon's list, from which the types are made.
            await s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})  # pyright: ignore[reportArgumentType]
    except s3.exceptions.BucketAlreadyOwnedByYou:
        return False
    return True
