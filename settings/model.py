"""Every setting of the service: its name, unit, default and the rules it must keep.

A setting's name is the field's in capitals (`S3_ENDPOINT`): in the environment, in `config.toml` and in messages alike.
Where a value may come from is told in `settings/sources.py`.
"""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PrivateAttr, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from settings import sources, temporal

MIB = 2**20
GB = 10**9


def _as_url(endpoint: str) -> str:
    """Take `host[:port]` for https, as facilities' configurations always have; leave an empty one empty."""
    if not endpoint:
        return endpoint
    url = endpoint if "://" in endpoint else f"https://{endpoint}"
    parts = urlsplit(url)
    _ = parts.port  # refuses a port that is no number
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be host[:port] or an http(s) URL without query")
    if parts.username or parts.password:
        raise ValueError("must not carry credentials")
    return url.rstrip("/")


def _as_residency(rule: str) -> str:
    kind, _, attribute = rule.partition(":")
    if rule not in ("sticky", "blocks") and not (kind == "xattr" and attribute):
        raise ValueError("must be sticky, blocks or xattr:<attribute>")
    return rule


def _as_origins(listed: str) -> str:
    for origin in parts_of(listed):
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}":
            raise ValueError("must be http(s)://host[:port], several separated by a semicolon")
    return listed


def parts_of(listed: str) -> tuple[str, ...]:
    """The entries of a setting that is a list separated by semicolons."""
    return tuple(filter(None, (entry.strip() for entry in listed.split(";"))))


def _as_listener(address: str) -> str:
    if address:
        host, _, port = address.rpartition(":")
        try:
            ip_address(host.strip("[]"))
        except ValueError:
            port = ""
        if not (port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError("must be an IP address and a port, as in 127.0.0.1:9464") from None
    return address


def _as_prefix(prefix: str) -> str:
    """Write a path prefix with a leading slash and without a trailing one."""
    return f"/{prefix.strip('/')}" if prefix.strip("/") else ""


def _as_file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ValueError("must name a file that is there")
    return path


Endpoint = Annotated[str, AfterValidator(_as_url)]
File = Annotated[Path | None, AfterValidator(_as_file)]
Prefix = Annotated[str, AfterValidator(_as_prefix)]
Origins = Annotated[str, AfterValidator(_as_origins)]
Listener = Annotated[str, AfterValidator(_as_listener)]
Residency = Annotated[str, AfterValidator(_as_residency)]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Hours = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Terabytes = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Gigabytes = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Streams = Annotated[int, Field(ge=0, le=1000)]

NO_SECRET = SecretStr("")


class Settings(BaseSettings):
    """The configuration of one process, checked as a whole; secrets do not print."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_ignore_empty=True, validate_default=True)

    environment: Literal["production", "development"] = Field(
        default="production",
        description="In production nothing starts with a password that everybody knows; development is for one machine "
        "without real data.",
    )

    # The API process
    uvicorn_host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    uvicorn_port: Port = Field(default=8000, description="Port that the API listens on.")
    uvicorn_root_path: str = Field(default="/", description="Path under which a proxy publishes the API.")
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = Field(
        default="info", description="How much the web server logs."
    )
    uvicorn_reload: bool = Field(
        default=False, description="Whether the API starts anew when its code changes; for developers only."
    )
    cors_origins: Origins = Field(
        default="", description="Web pages that may call the API from a browser: origins separated by semicolons."
    )
    job_endpoint_username: SecretStr = Field(
        default=NO_SECRET,
        description="Basic account that SciCat's url job action uses; the API refuses to start without.",
    )
    job_endpoint_password: SecretStr = Field(default=NO_SECRET, description="Password of that account.")
    operator_username: SecretStr = Field(
        default=NO_SECRET,
        description="Basic account for operators' verbs (pause, retry, ...); in production there are none without.",
    )
    operator_password: SecretStr = Field(default=NO_SECRET, description="Password of that account.")

    # The identity provider, and who may upload
    idp_url: Endpoint = Field(
        default="http://127.0.0.1:8080", description="Identity provider (Keycloak), without the realm."
    )
    idp_realm: str = Field(default="facility", min_length=1, description="Realm that issues the tokens.")
    idp_client_id: str = Field(
        default="archiver-service-api", min_length=1, description="The service's client in the realm."
    )
    idp_client_secret: SecretStr = Field(
        default=NO_SECRET, description="Secret of that client; empty: it is a public one."
    )
    idp_username: str = Field(
        default="archiver-service", min_length=1, description="Account whose tokens uploaders are given."
    )
    idp_password: SecretStr = Field(default=NO_SECRET, description="Password of that account.")
    idp_audience: str = Field(default="account", min_length=1, description="Audience that tokens must be made out for.")
    idp_algorithm: Algorithm = Field(
        default="RS256", description="Algorithm that tokens must be signed with; an asymmetric one."
    )
    scicat_ingestor_groups: str = Field(
        default="",
        description="SciCat groups whose members may upload, separated by semicolons; empty: nobody.",
    )

    # SciCat
    scicat_endpoint: Endpoint = Field(
        default="http://127.0.0.1:3000", description="SciCat backend, without the API prefix."
    )
    scicat_api_prefix: Prefix = Field(
        default="/api/v3", description="Prefix of SciCat's API: login, users and datablocks, which only v3 has."
    )
    scicat_jobs_api_prefix: Prefix = Field(
        default="/api/v3", description="Prefix for jobs (/api/v3 or /api/v4: their shapes differ)."
    )
    scicat_datasets_api_prefix: Prefix = Field(
        default="",
        description="Prefix for datasets, life cycles and original datablocks; empty: as SCICAT_API_PREFIX.",
    )
    scicat_user: SecretStr = Field(default=NO_SECRET, description="The service's account in SciCat.")
    scicat_password: SecretStr = Field(default=NO_SECRET, description="Password of that account.")

    # S3: the landing zone, what was retrieved, and the archiver's own records
    s3_endpoint: Endpoint = Field(default="http://127.0.0.1:9000", description="S3 as the service itself dials it.")
    s3_external_endpoint: Endpoint = Field(
        default="", description="S3 as users dial it, signed into their URLs; empty: as S3_ENDPOINT."
    )
    s3_region: str = Field(default="eu-west-1", min_length=1, description="Region that requests are signed for.")
    s3_user: SecretStr = Field(default=NO_SECRET, description="Access key of the service's S3 account.")
    s3_password: SecretStr = Field(default=NO_SECRET, description="Secret key of that account.")
    s3_link_user: SecretStr = Field(
        default=NO_SECRET,
        description="Access key of an S3 account that may read the retrieval bucket and nothing else; it signs the "
        "download links, and may be left out in development.",
    )
    s3_link_password: SecretStr = Field(default=NO_SECRET, description="Secret key of that account.")
    s3_landingzone_bucket: str = Field(
        default="landingzone", min_length=3, description="Bucket of raw files; versioned."
    )
    s3_retrieval_bucket: str = Field(default="retrieval", min_length=3, description="Bucket of retrieved datablocks.")
    s3_state_bucket: str = Field(
        default="archiver-state", min_length=3, description="Bucket of plans, manifests, journals."
    )
    s3_url_expiration_days: int = Field(
        default=7, ge=1, le=7, description="Life of a download link in days; S3 allows no more than 7."
    )
    url_expiration_seconds: int = Field(
        default=3600,
        ge=1,
        le=7 * 24 * 3600,
        description="Life of an upload URL in seconds; S3 allows no more than 7 days.",
    )
    s3_total_landing_space_tb: Terabytes = Field(
        default=100, description="Size of the landing zone in TB (decimal), for the admission of uploads."
    )
    free_space_factor: float = Field(
        default=0.9, gt=0, le=1, description="Share of the landing zone that uploads may fill."
    )
    upload_reservation_hours: Hours = Field(
        default=7 * 24,
        description="Hours after which an upload is dropped that nobody goes on with and nobody has finalized.",
    )
    reconcile_interval_hours: Hours = Field(
        default=1,
        description="Hours between two counts of the landing zone; takes effect by `scopemarchiver setup`.",
    )
    ca_file: File = Field(
        default=None,
        description="PEM file of the certificate authorities to trust, whatever is dialled; empty: the system's.",
    )

    # The long-term storage (LTS)
    lts_driver: Literal["http", "filesystem"] = Field(
        default="http", description="How to talk to the LTS: by http, or as a share that is mounted."
    )
    lts_endpoint: Endpoint = Field(default="http://127.0.0.1:8020", description="Base URL of the LTS (http).")
    lts_token: SecretStr = Field(default=NO_SECRET, description="Bearer token for the LTS (http).")
    lts_write: Literal["tus", "put"] = Field(
        default="tus",
        description="Upload protocol (http): tus goes on after a crash, a plain put begins the datablock anew.",
    )
    lts_path: Path | None = Field(default=None, description="Folder where the share is mounted (filesystem).")
    lts_residency: Residency = Field(
        default="sticky",
        description="How the share shows that a file is on tape (filesystem): sticky, blocks or xattr:<attribute>.",
    )
    lts_chunk_bytes: int = Field(
        default=16 * MIB,
        ge=5 * MIB,
        multiple_of=MIB,
        description="Smallest chunk in bytes, whole MiB; at least 5 MiB, S3's smallest part.",
    )
    lts_poll_s: Seconds = Field(
        default=300, description="Longest time between two looks at a migration or recall, in s."
    )
    lts_pin_lifetime_s: Seconds = Field(default=3600, description="Life of a pin in s; renewed while copying.")
    lts_free_space_percentage: float = Field(
        default=20,
        ge=0,
        le=100,
        description="With less of the LTS free than this, in %, no datablock is begun; 0: nobody looks.",
    )
    verify_policy: Literal["read-back", "tape-read-back"] = Field(
        default="read-back",
        description="When a datablock is read back: read-back (at once, from the cache) or tape-read-back (recalled).",
    )
    recall_deadline_days: Days = Field(default=7, description="Days until a recall is given up (outcome partial).")
    migration_deadline_days: Days = Field(
        default=2, description="Days until a datablock not yet on tape parks its dataset."
    )

    # Archiving
    archiver_target_size_gb: Gigabytes = Field(
        default=200, description="Size at which a datablock is closed, in GB (decimal; fractions allowed)."
    )
    archiver_target_files: Count = Field(default=20_000, description="Number of files at which a datablock is closed.")
    archiver_retry_initial_s: Seconds = Field(
        default=1, description="First pause before a failed step is tried again, in s."
    )
    archiver_retry_hours: Hours = Field(
        default=24, description="Hours for which a failing step is retried before parking."
    )
    archiver_park_days: Days = Field(default=7, description="Days that a parked dataset waits for an operator.")
    archiver_second_look_s: Seconds = Field(
        default=60, description="Pause before an undo on the LTS is repeated, to catch a late write, in s."
    )
    archiver_memory_budget_mb: int = Field(
        default=256, ge=64, description="Memory that a copying worker may fill, in MiB."
    )
    archiver_allow_unversioned: bool = Field(
        default=False,
        description="Whether to free files from a landing zone without versioning (one by one, after a wait).",
    )
    retrieval_retention_days: int = Field(
        default=14, ge=2, description="Days that retrieved datablocks are kept; at least S3_URL_EXPIRATION_DAYS + 1."
    )
    expiry_interval_hours: Hours = Field(
        default=1,
        description="Hours between two sweeps of the retrieval bucket; takes effect by `scopemarchiver setup`.",
    )
    abandoned_upload_hours: Hours = Field(
        default=24,
        description="Age in hours at which an upload to the retrieval bucket that no retrieval fills is aborted.",
    )
    consistency_interval_hours: Hours = Field(
        default=24, description="Hours between two consistency reports; takes effect by `scopemarchiver setup`."
    )
    job_window: int = Field(default=200, ge=1, le=1000, description="Datasets of one job that are in work at once.")
    watch_interval_s: Seconds = Field(
        default=300, description="Time between two looks for datasets that vanished, in s."
    )

    # Temporal and the workers
    temporal_address: str = Field(
        default="127.0.0.1:7233", min_length=1, description="host:port of the Temporal server."
    )
    temporal_namespace: str = Field(default="default", min_length=1, description="Namespace of all workflows.")
    worker_build_id: str = Field(
        default="",
        max_length=255,
        description="Build of the workers, if they are versioned; `scopemarchiver setup` makes it the current one.",
    )
    archival_slots: Count = Field(default=2, description="Datablocks that one worker writes at once.")
    retrieval_slots: Count = Field(default=4, description="Datablocks that one worker reads from the LTS at once.")
    lts_write_streams: Streams = Field(
        default=0, description="Datablocks that all workers together write to the LTS at once; 0: each has its slots."
    )
    lts_read_streams: Streams = Field(
        default=0, description="Datablocks that all workers together read from the LTS at once; 0: each has its slots."
    )
    control_slots: Count = Field(default=50, description="Light steps that one worker does at once.")
    heartbeat_timeout_s: Seconds = Field(
        default=10,
        ge=3,
        description="A worker that is silent for this long is taken for dead and its steps are begun again, in s.",
    )
    graceful_shutdown_s: Seconds = Field(
        default=10, description="Time within which a stopping worker has handed its steps over and is gone, in s."
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        default="info", description="How much the service logs."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="How the service logs: lines for people, or one JSON object a line."
    )
    metrics_address: Listener = Field(
        default="", description="IP address and port at which a process serves /metrics to Prometheus; empty: nowhere."
    )
    metrics_interval_s: Seconds = Field(
        default=30, description="Time between two counts of what waits, for the metrics, in s."
    )
    otel_exporter_otlp_endpoint: Endpoint = Field(
        default="", description="OpenTelemetry collector that takes traces (OTLP over HTTP); empty: there are none."
    )

    _temporal_security: dict[str, Any] = PrivateAttr(default_factory=dict[str, Any])

    @field_validator("s3_external_endpoint", "scicat_datasets_api_prefix")
    @classmethod
    def _as_its_namesake(cls, value: str, info: ValidationInfo) -> str:
        """Fill in the settings whose default is another setting's value."""
        namesake = {"s3_external_endpoint": "s3_endpoint", "scicat_datasets_api_prefix": "scicat_api_prefix"}
        # A namesake that was refused itself is absent here, and is named by its own error.
        return value or info.data.get(namesake[str(info.field_name)], "")

    @field_validator("ca_file", "lts_path", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        """TOML has no null."""
        return value or None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse combinations that would break a promise later."""
        if self.retrieval_retention_days < self.s3_url_expiration_days + 1:
            raise ValueError(
                f"RETRIEVAL_RETENTION_DAYS is {self.retrieval_retention_days} but must be at least "
                f"S3_URL_EXPIRATION_DAYS + 1 ({self.s3_url_expiration_days + 1}), "
                "or a link would outlive what it points to"
            )
        if self.lts_driver == "filesystem" and (self.lts_path is None or not self.lts_path.is_absolute()):
            raise ValueError("LTS_PATH must be an absolute path where LTS_DRIVER is filesystem")
        if _filled(self.s3_link_user) != _filled(self.s3_link_password):
            raise ValueError("S3_LINK_USER and S3_LINK_PASSWORD go together: set both or neither")
        buckets = (self.s3_landingzone_bucket, self.s3_retrieval_bucket, self.s3_state_bucket)
        if len(set(buckets)) < len(buckets):
            raise ValueError("S3_LANDINGZONE_BUCKET, S3_RETRIEVAL_BUCKET and S3_STATE_BUCKET must be three buckets")
        return self

    @property
    def datablock_target_bytes(self) -> int:
        """Size at which a datablock is closed, in bytes."""
        return round(self.archiver_target_size_gb * GB)

    @property
    def scicat_connection(self) -> dict[str, Any]:
        """The arguments with which every client of SciCat's connects as the service."""
        return {
            "endpoint": self.scicat_endpoint,
            "username": self.scicat_user.get_secret_value(),
            "password": self.scicat_password.get_secret_value(),
            "api_prefix": self.scicat_api_prefix,
            "datasets_api_prefix": self.scicat_datasets_api_prefix,
            "jobs_api_prefix": self.scicat_jobs_api_prefix,
            "ca_file": self.ca_file,
        }

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """Web pages that may call the API from a browser."""
        return parts_of(self.cors_origins)

    @property
    def ingestor_groups(self) -> frozenset[str]:
        """SciCat groups whose members may upload."""
        return frozenset(parts_of(self.scicat_ingestor_groups))

    @property
    def s3_connection(self) -> dict[str, Any]:
        """The arguments with which every S3 client of the service connects."""
        return {
            "endpoint": self.s3_endpoint,
            "access_key": self.s3_user.get_secret_value(),
            "secret_key": self.s3_password.get_secret_value(),
            "region": self.s3_region,
            "ca_file": self.ca_file,
        }

    @property
    def s3_links(self) -> dict[str, Any]:
        """The same for the client that signs download links: as users dial S3, by the account that may only read."""
        user, password = (
            (self.s3_link_user, self.s3_link_password)
            if _filled(self.s3_link_user)
            else (self.s3_user, self.s3_password)
        )
        return {
            **self.s3_connection,
            "endpoint": self.s3_external_endpoint,
            "access_key": user.get_secret_value(),
            "secret_key": password.get_secret_value(),
        }

    @property
    def temporal_connection(self) -> dict[str, Any]:
        """The arguments with which every Temporal client of the service connects."""
        return {
            "address": self.temporal_address,
            "namespace": self.temporal_namespace,
            **self._temporal_security,
        }

    def securing_temporal(self) -> Self:
        """The same settings, dialling Temporal as Temporal's own variables say.

        Raises:
            SettingsError: One sentence, when these cannot be used.
        """
        copy = self.model_copy()
        try:
            copy._temporal_security = temporal.security(self.ca_file)
        except ValueError as error:
            raise sources.SettingsError([str(error)]) from None
        return copy

    @property
    def telemetry(self) -> dict[str, Any]:
        """Where a process tells of its work."""
        return {"metrics_address": self.metrics_address, "otlp_endpoint": self.otel_exporter_otlp_endpoint}

    @property
    def in_production(self) -> bool:
        """Whether real data are at stake."""
        return self.environment == "production"

    def require(self, *names: str) -> None:
        """Refuse to go on without these settings, which have no default but only some processes need.

        Args:
            *names: Field names or setting names, in either case.

        Raises:
            SettingsError: Names every one that is empty, in one sentence each.
        """
        missing = [name.upper() for name in names if not _filled(getattr(self, name.lower()))]
        if missing:
            raise sources.SettingsError([f"{name} must be set and not be empty." for name in missing])

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments (tests), environment, secrets files, Temporal's own file, `config.toml`."""
        return (
            init_settings,
            env_settings,
            *sources.secrets_files(settings_cls),
            sources.temporal_file(settings_cls),
            sources.config_file(settings_cls),
        )


def _filled(value: object) -> bool:
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)
