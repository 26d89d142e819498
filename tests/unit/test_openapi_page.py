"""The published document is the API's."""

from typing import Any

import yaml

from tests.openapi import PAGE, document

UPLOADS = ("presignedUrls", "completeUpload", "abortMultipartUpload")


def test_the_published_document_is_the_apis() -> None:
    assert PAGE.read_text() == document(), "run: make openapi"


def test_every_code_that_uploaders_are_answered_is_declared() -> None:
    published: dict[str, Any] = yaml.safe_load(PAGE.read_text())
    paths, schemas = published["paths"], published["components"]["schemas"]
    for path, codes, scheme in [
        *((f"/s3/{name}", {"201", "401", "422", "500"}, "BearerAuth") for name in UPLOADS),
        ("/token", {"201", "401", "500"}, "SciCatAuth"),
    ]:
        operation = paths[path]["post"]
        assert set(operation["responses"]) == codes
        assert operation["security"] == [{scheme: []}]
        assert published["components"]["securitySchemes"][scheme]["scheme"] == "bearer"
    assert set(schemas["PresignedUrl"]["required"]) == {"dataset_id", "object_name", "parts"}
    assert schemas["PresignedUrl"]["properties"]["parts"].items() >= {"minimum": 1, "maximum": 10_000}.items()
    assert set(schemas["IssuedToken"]["required"]) == {"access_token", "refresh_token", "expires_in"}
    assert "not-before-policy" in schemas["IssuedToken"]["properties"]
    assert set(schemas["CompletedUpload"]["required"]) == {"location", "key"}
