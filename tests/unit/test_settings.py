"""What the configuration accepts, where it comes from, and what it says when it is wrong."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cli.stack_environment import keep_secrets
from settings import Settings, SettingsError, load_settings

PROJECT = Path(__file__).parents[2]
SECRET_FIELDS = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("SCOPEMARCHIVER_CONFIG", raising=False)
    (tmp_path / "no-secrets").mkdir()
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "no-secrets"))
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
    (secrets / "s3_password").write_text("well hidden\n")
    monkeypatch.setenv("SECRETS_DIR", str(secrets))
    monkeypatch.setenv("S3_REGION", "from-environment")
    settings = load_settings()
    assert settings.s3_region == "from-environment"
    assert settings.scicat_endpoint == "https://from-file"
    assert settings.temporal_namespace == "from-config"
    assert settings.temporal_address == "127.0.0.1:7233"
    assert settings.s3_password.get_secret_value() == "well hidden"


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
        (
            "METRICS_ADDRESS = 'localhost:9464'",
            "METRICS_ADDRESS must be an IP address and a port, as in 127.0.0.1:9464.",
        ),
        ("CA_FILE = 'nowhere.pem'", "CA_FILE must name a file that is there."),
        ("ENVIRONMENT = 'prod'", "ENVIRONMENT should be 'production' or 'development'."),
        ("LTS_WRITE_STREAMS = -1", "LTS_WRITE_STREAMS should be greater than or equal to 0."),
        ("S3_LINK_USER = 'links'", "S3_LINK_USER and S3_LINK_PASSWORD go together: set both or neither."),
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


def test_require_names_what_is_missing() -> None:
    settings = Settings(s3_user=SecretStr("x"))
    settings.require("s3_user", "S3_ENDPOINT")
    with pytest.raises(SettingsError, match=r"^S3_PASSWORD must be set and not be empty\.$"):
        settings.require("s3_user", "s3_password")


# Secrets


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("SECRETS_DIR", str(folder))
    return folder


def test_every_secret_may_come_from_a_file(secrets: Path) -> None:
    for name in SECRET_FIELDS:
        (secrets / name).write_text(f"{name[::-1]} is long enough\n")
    (secrets / "of-another-program").write_text("is left alone")
    settings = load_settings()
    for name in SECRET_FIELDS:
        assert getattr(settings, name).get_secret_value() == f"{name[::-1]} is long enough"
    assert "long enough" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_a_folder_of_secrets_that_is_named_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRETS_DIR", "nowhere")
    with pytest.raises(SettingsError, match=r"^SECRETS_DIR names nowhere, which is not a folder\.$"):
        load_settings()


def test_a_secret_that_cannot_be_read_is_named(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = secrets / "s3_password"
    unreadable.write_text("hidden")

    def refuse(path: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == f"{unreadable} cannot be read: Permission denied."


# Production

REMEDY = "give the account a secret of its own, or set ENVIRONMENT to development on a machine without real data."
PLACEHOLDER = "is a default or a placeholder that everybody knows"


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("s3_password", "minioadmin", PLACEHOLDER),
        ("s3_password", "MinioAdmin1", PLACEHOLDER),
        ("job_endpoint_password", "changeme", PLACEHOLDER),
        ("operator_password", "<CHANGE_ME>", PLACEHOLDER),
        ("lts_token", "your-token-here", PLACEHOLDER),
        ("scicat_password", "password-of-scicat", PLACEHOLDER),
        ("scicat_password", "aman", "is shorter than 8 characters"),
        ("s3_password", "account-of-S3", "is the name of its account"),
    ],
)
def test_production_refuses_what_everybody_knows(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wrong: str
) -> None:
    monkeypatch.setenv("S3_USER", "account-of-s3")
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == f"{name.upper()} {wrong}: {REMEDY}"
    monkeypatch.setenv("ENVIRONMENT", "development")
    assert getattr(load_settings(), name).get_secret_value() == value


def test_production_names_each_of_them_and_shows_none(secrets: Path) -> None:
    passwords = {name for name in SECRET_FIELDS if not name.endswith(("_user", "_username"))}
    for name in SECRET_FIELDS:
        (secrets / name).write_text("changeme")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert sorted(sentence.split()[0] for sentence in caught.value.sentences) == sorted(map(str.upper, passwords))
    assert "changeme" not in str(caught.value)


def test_production_takes_secrets_of_ones_own_and_names_of_any_kind(secrets: Path) -> None:
    for name in SECRET_FIELDS:
        (secrets / name).write_text("admin" if name.endswith(("_user", "_username")) else f"Zk3.{name[::-1]}/x")
    assert load_settings().in_production


def test_no_word_of_the_local_stack_is_good_enough_for_production(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, there = (keep_secrets(tmp_path / machine) for machine in ("here", "there"))
    same = {name for name in here if here[name] == there[name] and not name.endswith(("_USER", "_USERNAME"))}
    assert "SCICAT_PASSWORD" in same
    for name in same:
        monkeypatch.setenv(name, here[name])
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert {sentence.split()[0] for sentence in caught.value.sentences} == same


def test_links_are_signed_by_an_account_of_their_own_where_there_is_one() -> None:
    shared: dict[str, Any] = {"s3_user": "service", "s3_password": "s", "s3_external_endpoint": "https://outside"}
    own = Settings(**shared, s3_link_user=SecretStr("links"), s3_link_password=SecretStr("l"))
    assert (own.s3_links["access_key"], own.s3_links["secret_key"]) == ("links", "l")
    assert own.s3_links["endpoint"] == "https://outside"
    assert own.s3_connection["access_key"] == "service"
    assert Settings(**shared).s3_links["access_key"] == "service"
