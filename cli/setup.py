"""What the service needs to find before it starts: buckets, Temporal's namespace, search attributes and Schedules.

Everything here may be done again at any time: what is there already is left alone.
"""

import asyncio
import contextlib
import time
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeWorkerDeploymentRequest,
    RegisterNamespaceRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    UpdateNamespaceRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from cli.processes import StackError
from clients.temporal import connect
from domain.errors import InfrastructureError
from settings import Settings
from settings.needs import Process, needed
from workflows import search_attributes
from workflows.queues import DEPLOYMENT

RETENTION = timedelta(days=30)
"""How long closed workflows can be asked about, and a second press of the same job is recognised by Temporal."""

_NAMESPACE_KNOWN_WITHIN_S = 60.0


class SetupError(StackError):
    """Something outside refuses or does not answer; the text is a sentence that names the setting to look at."""


async def prepare(settings: Settings, *, minio: bool = False) -> list[str]:
    """Make everything that is missing, and tell what was done, a sentence each.

    Args:
        settings: Where S3 and Temporal are.
        minio: S3 is a MinIO whose root is S3_USER, so the account of S3_LINK_USER can be made, too.

    Raises:
        StackError: S3 or Temporal refuses, or does not answer.
    """
    done = await prepare_buckets(settings)
    if minio:
        # As below, its modules take long to load.
        from cli import minio_accounts

        settings.require("S3_LINK_USER", "S3_LINK_PASSWORD")
        await minio_accounts.prepare(settings)
    return done + await prepare_temporal(settings)


async def prepare_buckets(settings: Settings) -> list[str]:
    """Make the three buckets, private as S3 makes them; turn versioning on for the landing zone.

    Raises:
        SetupError: S3 refuses, or does not answer.
    """
    # Loading an S3 client takes longer than all else together, and `--help` and `down` need none.
    from clients.s3 import ObjectStore

    settings.require(*needed(settings, Process.SETUP))
    landing = settings.s3_landingzone_bucket
    done: list[str] = []
    try:
        async with ObjectStore.connect(**settings.s3_connection) as objects:
            for bucket in (landing, settings.s3_retrieval_bucket, settings.s3_state_bucket):
                before = await objects.versioning(bucket)
                # The archive pins an object's version before it reads and frees just that one.
                await objects.ensure_bucket(bucket, versioned=bucket == landing)
                if before is None:
                    done.append(f"Made the bucket {bucket}.")
                elif bucket == landing and before != "Enabled":
                    done.append(f"Turned on versioning of the bucket {bucket}.")
    except InfrastructureError as error:
        raise SetupError(
            f"S3 at {settings.s3_endpoint}: {error}; check S3_ENDPOINT, S3_USER and S3_PASSWORD."
        ) from error
    return done


async def prepare_temporal(settings: Settings) -> list[str]:
    """Make the namespace, register our search attributes, keep closed workflows for 30 days, make our Schedules.

    Begin to admit uploads, too.

    Raises:
        SetupError: Temporal refuses, or does not answer.
    """
    # They bring the activities with them, and those the S3 client.
    from cli.schedules import prepare_schedules

    try:
        client = await connect(**settings.temporal_connection)
        return [
            *await _make_namespace(client),
            *await _add_search_attributes(client),
            *await _prolong_retention(client),
            *await prepare_schedules(client, settings),
            *await _start_admission(client),
            *await _set_current_build(client, settings.worker_build_id),
        ]
    except RPCError as error:
        raise SetupError(
            f"Temporal at {settings.temporal_address} refuses the namespace {settings.temporal_namespace} "
            f"({error.status.name}): check TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE."
        ) from error
    except RuntimeError as error:  # what the SDK raises when it cannot connect
        raise SetupError(f"Temporal does not answer at {settings.temporal_address}: check TEMPORAL_ADDRESS.") from error


async def _start_admission(client: Client) -> list[str]:
    """Have the landing zone counted before the first upload asks for room."""
    # As above, it brings the activities with it.
    from domain.uploads import LandingZoneOrder
    from workflows.landing_zone import START, LandingZone

    known = client.get_workflow_handle(START["id"])
    with contextlib.suppress(RPCError):
        if (await known.describe()).status is WorkflowExecutionStatus.RUNNING:
            return []
    await client.start_workflow(LandingZone.run, LandingZoneOrder(), **START)
    return ["Started the admission of uploads to the landing zone."]


async def _add_search_attributes(client: Client) -> list[str]:
    listed = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    missing = [key for key in search_attributes.ALL if key.name not in listed.custom_attributes]
    for key in missing:
        wanted = AddSearchAttributesRequest(namespace=client.namespace)
        wanted.search_attributes[key.name] = IndexedValueType.ValueType(key.indexed_value_type)
        try:
            await client.operator_service.add_search_attributes(wanted)
        except RPCError as error:
            if error.status != RPCStatusCode.ALREADY_EXISTS:
                raise
    return [f"Registered the search attribute {key.name}." for key in missing]


async def _set_current_build(client: Client, build_id: str) -> list[str]:
    """Give this build's workers all that is to be done; without it every workflow would stand still."""
    if not build_id:
        return []
    known = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=DEPLOYMENT)
    with contextlib.suppress(RPCError):  # there is no such deployment yet
        described = (await client.workflow_service.describe_worker_deployment(known)).worker_deployment_info
        if described.routing_config.current_deployment_version.build_id == build_id:
            return []
    await client.workflow_service.set_worker_deployment_current_version(
        SetWorkerDeploymentCurrentVersionRequest(
            namespace=client.namespace, deployment_name=DEPLOYMENT, build_id=build_id, allow_no_pollers=True
        )
    )
    return [f"Made {build_id} the current build of the workers."]


async def _make_namespace(client: Client) -> list[str]:
    """Make the namespace on a server that has none of that name, as one of ones own has at first."""
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
    else:
        return []
    ttl = Duration()
    ttl.FromTimedelta(RETENTION)
    wanted = RegisterNamespaceRequest(namespace=client.namespace, workflow_execution_retention_period=ttl)
    await client.workflow_service.register_namespace(wanted)
    # Each part of the server reads the namespaces anew after some seconds.
    deadline = time.monotonic() + _NAMESPACE_KNOWN_WITHIN_S
    while not await _is_known(client):
        if time.monotonic() > deadline:
            raise SetupError(
                f"Temporal has made the namespace {client.namespace} and does not know it after "
                f"{_NAMESPACE_KNOWN_WITHIN_S:.0f} s: look into its log, then run setup again."
            )
        await asyncio.sleep(0.5)
    return [f"Made the namespace {client.namespace}."]


async def _is_known(client: Client) -> bool:
    try:
        await client.operator_service.list_search_attributes(ListSearchAttributesRequest(namespace=client.namespace))
        await client.count_workflows()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


async def _prolong_retention(client: Client) -> list[str]:
    namespace = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    if namespace.config.workflow_execution_retention_ttl.ToTimedelta() >= RETENTION:
        return []
    ttl = Duration()
    ttl.FromTimedelta(RETENTION)
    try:
        await client.workflow_service.update_namespace(
            UpdateNamespaceRequest(
                namespace=client.namespace, config=NamespaceConfig(workflow_execution_retention_ttl=ttl)
            )
        )
    except RPCError as error:
        if error.status not in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED):
            raise
        return [f"Closed workflows are kept shorter than {RETENTION.days} days, and this account may not change it."]
    return [f"Closed workflows are now kept {RETENTION.days} days."]
