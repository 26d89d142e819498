"""Temporal's own variables and file say how Temporal is dialled, and no secret of theirs shows."""

from pathlib import Path

import pytest
from temporalio.service import TLSConfig

from settings import Settings, SettingsError, load_settings

KEY = "key-of-temporal-itself"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE", "CA_FILE", "SCOPEMARCHIVER_CONFIG", "SECRETS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("own.pem", "own.key", "site.pem", "temporals.pem"):
        Path(name).write_text(f"content of {name}")


def dialled() -> dict[str, object]:
    return load_settings().temporal_connection


def refused() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert KEY not in str(caught.value)
    return str(caught.value)


def test_without_any_temporal_is_dialled_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"address": "127.0.0.1:7233", "namespace": "default"}
    assert dialled() == plain
    # Temporal itself would take the empty one for "on".
    for name in ("TEMPORAL_TLS", "TEMPORAL_API_KEY", "TEMPORAL_CONFIG_FILE", "TEMPORAL_TLS_CLIENT_CERT_PATH"):
        monkeypatch.setenv(name, "")
    assert dialled() == plain


def test_tls_trusts_the_system_or_the_site_or_whom_temporals_own_variable_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEMPORAL_TLS", "true")
    assert dialled()["tls"] == TLSConfig()
    monkeypatch.setenv("CA_FILE", "site.pem")
    assert dialled()["tls"] == TLSConfig(server_root_ca_cert=b"content of site.pem")
    monkeypatch.setenv("TEMPORAL_TLS_SERVER_CA_CERT_PATH", "temporals.pem")
    assert dialled()["tls"] == TLSConfig(server_root_ca_cert=b"content of temporals.pem")


def test_a_certificate_of_our_own_means_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_CERT_PATH", "own.pem")
    pair = "TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH go together: set both or neither."
    assert refused() == pair
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_KEY_PATH", "own.key")
    expected = TLSConfig(client_cert=b"content of own.pem", client_private_key=b"content of own.key")
    assert dialled()["tls"] == expected
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_KEY_PATH", "gone.key")
    assert refused() == "gone.key, which TEMPORAL_TLS_… names, cannot be read: No such file or directory."


def test_a_key_means_tls_and_is_never_sent_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_API_KEY", KEY)
    monkeypatch.setenv("CA_FILE", "site.pem")
    assert dialled()["api_key"] == KEY
    assert dialled()["tls"] == TLSConfig(server_root_ca_cert=b"content of site.pem")
    monkeypatch.setenv("TEMPORAL_TLS", "false")
    assert refused() == "TEMPORAL_API_KEY would be sent in the clear: TEMPORAL_TLS must be true or not be set."


def test_settings_that_hold_a_key_do_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_API_KEY", KEY)
    settings = load_settings()
    assert KEY not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_a_profile_says_all_of_it_and_yields_to_the_environment_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text("TEMPORAL_ADDRESS = 'in-config:7233'\nTEMPORAL_NAMESPACE = 'in-config'")
    (tmp_path / "temporal.toml").write_text(
        f"[profile.site]\naddress = 'in-profile:7233'\nnamespace = 'in-profile'\napi_key = '{KEY}'\n"
        "[profile.site.tls]\nserver_name = 'temporal.example.org'\n"
        "[profile.site.grpc_meta]\nfor = 'the gateway'\n"
    )
    assert dialled()["address"] == "in-config:7233"
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", "temporal.toml")
    monkeypatch.setenv("TEMPORAL_PROFILE", "site")
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "in-environment")
    assert dialled() == {
        "address": "in-profile:7233",
        "namespace": "in-environment",
        "tls": TLSConfig(domain="temporal.example.org"),
        "api_key": KEY,
        "rpc_metadata": {"for": "the gateway"},
    }


def test_a_file_that_is_not_there_or_is_none_of_temporals_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", "temporal.toml")
    assert refused() == "TEMPORAL_CONFIG_FILE names temporal.toml, which is not a file."
    for content in (f"[profile.default]\napi_key = '{KEY}\n", f"[profile.default]\n{KEY} = 1\n"):
        (tmp_path / "temporal.toml").write_text(content)
        assert refused().startswith("temporal.toml is not as Temporal wants its configuration: ")
    (tmp_path / "temporal.toml").write_text("")
    monkeypatch.setenv("TEMPORAL_PROFILE", "other")
    assert refused().endswith("Profile 'other' not found.")


def test_settings_of_another_server_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_API_KEY", KEY)
    # What the local stack does: the shell's variables are for another one.
    assert Settings(temporal_address="here:1").temporal_connection == {"address": "here:1", "namespace": "default"}
