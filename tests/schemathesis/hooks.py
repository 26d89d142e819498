"""What the document cannot say of a good request, supplied: names that agree, ids that are known.

Only requests that are meant to be good are touched; those that are meant to be refused go out as they were made.
"""

from typing import Any
from uuid import NAMESPACE_URL, uuid5

import schemathesis

from tests.fakes.front import KNOWN_DATASET, WHOLE, WHOLE_OBJECT

_PREFIX = f"openem-network/datasets/{KNOWN_DATASET}/raw_files/"


@schemathesis.hook  # pyright: ignore[reportUnknownMemberType]
def before_call(_context: schemathesis.HookContext, case: schemathesis.Case[Any], _kwargs: dict[str, Any]) -> None:
    """Mend a good request."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if "pid" in case.path_parameters:
        case.path_parameters["pid"] = KNOWN_DATASET
    if isinstance(case.body, dict):
        body: dict[str, Any] = case.body
        if {"id", "type"} <= body.keys():
            # A job keeps its type.
            body["id"] = str(uuid5(NAMESPACE_URL, body["id"].lower() + body["type"]))
        if "pid" in body:
            body["pid"] = KNOWN_DATASET
        if "object_name" in body:
            _mend_upload(body)
        elif "dataset_id" in body:
            body["dataset_id"] = KNOWN_DATASET


def _mend_upload(body: dict[str, Any]) -> None:
    name = str(body["object_name"])
    if not name.startswith(_PREFIX):
        body["object_name"] = _PREFIX + ("".join(c for c in name[:80] if c.isprintable() and c not in "/\\.") or "x")
    if body["dataset_id"]:
        body["dataset_id"] = KNOWN_DATASET
    for number, part in enumerate(body.get("parts", ()) if isinstance(body.get("parts"), list) else (), 1):
        part["part_number"] = number
    if "checksum_sha256" in body and not body["upload_id"]:
        body |= WHOLE | {"object_name": WHOLE_OBJECT}
