"""What the configuration accepts, where it comes from, and what it says when it is wrong."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from settings import Settings, SettingsError, load_settings

PROJECT = Path(__file__).parents[2]
SECRET_FIELDS = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("SCOPEMARCHIVER_CONFIG", raising=False)
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "no-such-folder"))
    monkeypatch.chdir(tmp_path)


def config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)


def test_config_toml_and_the_model_agree() -> None:
    written: dict[str, Any] = tomllib.loads((PROJECT / "config.toml").read_text())
    assert {name.lower() for name in written} == set(Settings.model_fields) - SECRET_FIELDS
    for name, value in written.items():
        default = Settings.model_fields[name.lower()].default
        assert value == ("" if default is None else default), name


def test_the_shipped_config_toml_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOPEMARCHIVER_CONFIG", str(PROJECT / "config.toml"))
    assert load_settings() == Settings()
    assert load_settings().ca_file is None


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_environment_wins_over_secrets_files_over_config_over_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config(tmp_path, 'S3_REGION = "from-config"\nscicat_endpoint = "from-config"\nTEMPORAL_NAMESPACE = "from-config"\n')
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "s3_region").write_text("from-file")
    (secrets / "scicat_endpoint").write_text("from-file")
    (secrets / "s3_password").write_text("hidden\n")
    monkeypatch.setenv("SECRETS_DIR", str(secrets))
    monkeypatch.setenv("S3_REGION", "from-environment")
    settings = load_settings()
    assert settings.s3_region == "from-environment"
    assert settings.scicat_endpoint == "https://from-file"
    assert settings.temporal_namespace == "from-config"
    assert settings.temporal_address == "127.0.0.1:7233"
    assert settings.s3_password.get_secret_value() == "hidden"


def test_secrets_do_not_print() -> None:
    settings = Settings(s3_password=SecretStr("hidden"), lts_token=SecretStr("hidden"))
    assert "hidden" not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("scopem.example.org", "https://scopem.example.org"),
        ("minio:9000", "https://minio:9000"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
    ],
)
def test_endpoints_without_a_scheme_mean_https(given: str, url: str) -> None:
    settings = Settings(s3_endpoint=given)
    assert settings.s3_endpoint == url
    assert settings.s3_external_endpoint == url


def test_defaults_that_follow_another_setting() -> None:
    settings = Settings(scicat_api_prefix="api/v3/")
    assert settings.scicat_datasets_api_prefix == "/api/v3"
    settings = Settings(s3_endpoint="http://inside:9000", s3_external_endpoint="outside.example.org")
    assert settings.s3_external_endpoint == "https://outside.example.org"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_REGION", "")
    assert load_settings().s3_region == "eu-west-1"


def test_decimal_sizes() -> None:
    assert Settings(archiver_target_size_gb=0.001).datablock_target_bytes == 1_000_000


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("S3_ENPOINT = 'x'", "S3_ENPOINT is not the name of a setting."),
        ("LTS_CHUNK_BYTES = 1_048_576", "LTS_CHUNK_BYTES should be greater than or equal to 5242880."),
        ("S3_ENDPOINT = 'ftp://x'", "S3_ENDPOINT must be host[:port] or an http(s) URL without query."),
        ("LTS_DRIVER = 'pigeon'", "LTS_DRIVER should be 'http' or 'filesystem'."),
        ("LTS_DRIVER = 'filesystem'", "LTS_PATH must be an absolute path where LTS_DRIVER is filesystem."),
        ("LTS_RESIDENCY = 'xattr:'", "LTS_RESIDENCY must be sticky, blocks or xattr:<attribute>."),
        ("UVICORN_PORT = 'many'", "UVICORN_PORT should be a valid integer, unable to parse string as an integer."),
        (
            "RETRIEVAL_RETENTION_DAYS = 7",
            "RETRIEVAL_RETENTION_DAYS is 7 but must be at least S3_URL_EXPIRATION_DAYS + 1 (8), "
            "or a link would outlive what it points to.",
        ),
        (
            "S3_STATE_BUCKET = 'retrieval'",
            "S3_LANDINGZONE_BUCKET, S3_RETRIEVAL_BUCKET and S3_STATE_BUCKET must be three buckets.",
        ),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence(tmp_path: Path, toml: str, sentence: str) -> None:
    config(tmp_path, toml)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == sentence


def test_every_wrong_setting_is_named_at_once_and_no_value_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config(tmp_path, "JOB_WINDOW = 0\nS3_ENDPOINT = 'http://root:hidden@minio'")
    monkeypatch.setenv("ARCHIVAL_SLOTS", "none")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert {sentence.split()[0] for sentence in caught.value.sentences} == {
        "JOB_WINDOW",
        "S3_ENDPOINT",
        "ARCHIVAL_SLOTS",
    }
    assert "hidden" not in str(caught.value)


def test_a_config_file_that_is_named_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOPEMARCHIVER_CONFIG", "nowhere.toml")
    with pytest.raises(SettingsError, match=r"^SCOPEMARCHIVER_CONFIG names nowhere\.toml, which is not a file\.$"):
        load_settings()


def test_a_broken_config_file_is_named(tmp_path: Path) -> None:
    config(tmp_path, "S3_REGION =")
    with pytest.raises(SettingsError, match=r"^config\.toml cannot be read: "):
        load_settings()


@pytest.mark.parametrize("missing", ["job_endpoint_username", "job_endpoint_password"])
def test_the_job_endpoint_needs_an_account(missing: str) -> None:
    account = {name: SecretStr("x") for name in ("job_endpoint_username", "job_endpoint_password") if name != missing}
    with pytest.raises(SettingsError, match="JOB_ENDPOINT_USERNAME and JOB_ENDPOINT_PASSWORD must be set"):
        Settings.model_validate(account).require_job_endpoint_credentials()


def test_require_names_what_is_missing() -> None:
    settings = Settings(s3_user=SecretStr("x"))
    settings.require("s3_user", "S3_ENDPOINT")
    with pytest.raises(SettingsError, match=r"^S3_PASSWORD must be set and not be empty\.$"):
        settings.require("s3_user", "s3_password")
