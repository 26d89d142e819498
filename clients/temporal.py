"""Temporal's client, made in one place: whom it trusts, what it shows of itself, and what no history may hold."""

import dataclasses
from collections.abc import Mapping, Sequence

from temporalio.api.failure.v1 import Failure
from temporalio.client import Client, Interceptor
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DefaultFailureConverter, PayloadConverter
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.runtime import Runtime
from temporalio.service import TLSConfig

from domain.redaction import redacted


class RedactingFailures(DefaultFailureConverter):
    """Takes secrets out of the texts of failures, whoever raised them; each cause comes by here as well."""

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        """Convert as Temporal does, then redact."""
        if isinstance(exception, ApplicationError) and exception.category is ApplicationErrorCategory.BENIGN:
            # That a wait goes on needs no stack, which takes a seventh of what a poll costs.
            exception = exception.with_traceback(None)
        super().to_failure(exception, payload_converter, failure)
        failure.message = redacted(failure.message)
        failure.stack_trace = redacted(failure.stack_trace)


DATA_CONVERTER = dataclasses.replace(pydantic_data_converter, failure_converter_class=RedactingFailures)


async def connect(
    *,
    address: str,
    namespace: str,
    tls: TLSConfig | bool = False,
    api_key: str | None = None,
    rpc_metadata: Mapping[str, str] | None = None,
    lazy: bool = False,
    runtime: Runtime | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> Client:
    """Connect to a Temporal server.

    Args:
        address: host:port.
        namespace: of all workflows.
        tls: whether to dial by TLS, whom to trust and which certificate to show; the server's is always checked.
        api_key: shown with every call, where the server asks for one.
        rpc_metadata: headers of every call.
        lazy: connect with the first call.
        runtime: of the process's metrics; None: the SDK's own.
        interceptors: of the client and, where they are a worker's as well, of its workers.

    Raises:
        RuntimeError: the server cannot be reached, or is not trusted.
        RPCError: it refuses us.
    """
    return await Client.connect(
        address,
        namespace=namespace,
        data_converter=DATA_CONVERTER,
        tls=tls,
        api_key=api_key,
        rpc_metadata=rpc_metadata or {},
        lazy=lazy,
        runtime=runtime,
        interceptors=interceptors,
    )
