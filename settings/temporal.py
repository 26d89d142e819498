"""How Temporal is dialled, configured as Temporal has it: by the variables and the file that its own command reads.

`TEMPORAL_ADDRESS` and `TEMPORAL_NAMESPACE` are settings of ours too. All that keeps others out is told by Temporal's
own: `TEMPORAL_API_KEY`, `TEMPORAL_GRPC_META_…`, `TEMPORAL_TLS`, `TEMPORAL_TLS_CLIENT_CERT_PATH` and others like it,
or by a profile (`TEMPORAL_PROFILE`) of the TOML file that `TEMPORAL_CONFIG_FILE` names. A file that nobody named is not
looked for: who has one in the home folder has it for another server.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from temporalio.envconfig import ClientConfigProfile

FILE_VARIABLE = "TEMPORAL_CONFIG_FILE"
_KEEPING_OTHERS_OUT = ("TEMPORAL_TLS", "TEMPORAL_API_KEY", "TEMPORAL_GRPC_META_")


def config_file() -> Path | None:
    """Tell which file of Temporal's counts; None where none is named."""
    named = _given().get(FILE_VARIABLE)
    return Path(named) if named else None


def address() -> dict[str, str]:
    """Tell the settings that stand in the profile of Temporal's file.

    Raises:
        ValueError: A sentence that names the variable to look at.
    """
    profile = _profile()
    named = {"temporal_address": profile.address, "temporal_namespace": profile.namespace}
    return {name: value for name, value in named.items() if value}


def security(ca_file: Path | None) -> dict[str, Any]:
    """Tell how to dial Temporal so that nobody else can: the arguments `tls`, `api_key` and `rpc_metadata` of a client.

    Empty where nothing asks for it: then it is dialled in the clear.

    Args:
        ca_file: Certificates to trust where Temporal's own variables name none; None: the system's.

    Raises:
        ValueError: A sentence that names the variable to look at, and shows no value of a secret.
    """
    if not any(name == FILE_VARIABLE or name.startswith(_KEEPING_OTHERS_OUT) for name in _given()):
        return {}
    profile = _profile()
    try:
        dialling: Mapping[str, Any] = profile.to_client_connect_config()
    except OSError as error:
        raise ValueError(f"{error.filename}, which TEMPORAL_TLS_… names, cannot be read: {error.strerror}.") from None
    tls = dialling.get("tls", False)
    if not tls and profile.api_key:
        raise ValueError("TEMPORAL_API_KEY would be sent in the clear: TEMPORAL_TLS must be true or not be set.")
    if tls:
        tls = _trusting(tls, ca_file)
    return {"tls": tls, "api_key": dialling.get("api_key"), "rpc_metadata": dialling.get("rpc_metadata", {})}


def _trusting(tls: Any, ca_file: Path | None) -> Any:
    from temporalio.service import TLSConfig

    tls = tls if isinstance(tls, TLSConfig) else TLSConfig()
    if bool(tls.client_cert) != bool(tls.client_private_key):
        raise ValueError(
            "TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH go together: set both or neither."
        )
    if ca_file and not tls.server_root_ca_cert:
        return dataclasses.replace(tls, server_root_ca_cert=ca_file.read_bytes())
    return tls


def _given() -> dict[str, str]:
    # An empty variable is none, as for all settings; Temporal would take an empty TEMPORAL_TLS for "on".
    return {name: value for name, value in os.environ.items() if name.startswith("TEMPORAL_") and value}


def _profile() -> "ClientConfigProfile":
    # Temporal's client takes half a second to load, which who asks for help or for the settings should not wait for.
    from temporalio.envconfig import ClientConfigProfile

    given, file = _given(), config_file()
    # Temporal passes over a file that is not there, and would then dial in the clear.
    if file and not file.is_file():
        raise ValueError(f"{FILE_VARIABLE} names {file}, which is not a file.")
    try:
        return ClientConfigProfile.load(override_env_vars=given, disable_file=file is None, config_file_strict=True)
    except RuntimeError as error:
        # Of the text only the beginning: what follows quotes the file, which may hold a key.
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{file or 'The environment'} is not as Temporal wants its configuration: {reason}.") from None
