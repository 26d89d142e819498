"""Temporal's client, made in one place: whom it trusts, what it shows of itself, and what no history may hold."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from temporalio.api.failure.v1 import Failure
from temporalio.client import Client, Interceptor
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DefaultFailureConverter, PayloadConverter
from temporalio.runtime import Runtime
from temporalio.service import TLSConfig

from domain.redaction import redacted


class RedactingFailures(DefaultFailureConverter):
    """Takes secrets out of the texts of failures, whoever raised them; each cause comes by here as well."""

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        """Convert as Temporal does, then redact."""
        super().to_failure(exception, payload_converter, failure)
        failure.message = redacted(failure.message)
        failure.stack_trace = redacted(failure.stack_trace)


DATA_CONVERTER = dataclasses.replace(pydantic_data_converter, failure_converter_class=RedactingFailures)


async def connect(
    *,
    address: str,
    namespace: str,
    tls: bool = False,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
    lazy: bool = False,
    runtime: Runtime | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> Client:
    """Connect to a Temporal server.

    Args:
        address: host:port.
        namespace: of all workflows.
        tls: whether to dial by TLS; the server's certificate is always checked.
        ca_file: certificates to trust instead of the system's.
        certificate_file: PEM file of our own certificate, where the server asks for one.
        key_file: PEM file of its private key.
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
        tls=_trust(ca_file, certificate_file, key_file) if tls else False,
        lazy=lazy,
        runtime=runtime,
        interceptors=interceptors,
    )


def _trust(ca_file: Path | None, certificate_file: Path | None, key_file: Path | None) -> TLSConfig:
    return TLSConfig(
        server_root_ca_cert=ca_file.read_bytes() if ca_file else None,
        client_cert=certificate_file.read_bytes() if certificate_file else None,
        client_private_key=key_file.read_bytes() if key_file else None,
    )
