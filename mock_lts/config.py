"""Settings, read once at start-up from `MOCK_LTS_*`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

MB = 1_000_000


class Config(BaseModel):
    """How big, how fast and how strict the pretend library is.

    Library times (`dwell_s`, `migrate_age_s`, and the drives' own in `model.Timing`) are multiplied by `time_factor`;
    what an HTTP client sees as a promise (`upload_expiry_s`, `pin_lifetime_s`, `evict_after_migration_s`) is in real
    seconds. Megabytes are decimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8020, ge=0, le=65535, description="TCP port to listen on")
    state: Path = Field(Path(".local/mock_lts"), description="Folder that holds everything; must allow hard links")
    token: SecretStr = Field(SecretStr(""), description="Bearer token, or Basic password; empty = none needed")
    site: str = Field("mock-lts", description="The site's name in Tape REST discovery")
    public_url: str = Field("", description="Base of URLs handed out; empty = taken from each request's Host")
    cache_mb: float = Field(40_000, gt=0, description="Disk cache, MB")
    tapes: int = Field(8, ge=1, le=999, description="Number of cartridges")
    tape_capacity_mb: float = Field(100_000, gt=0, description="Capacity of one cartridge, MB")
    drives: int = Field(2, ge=1, le=64, description="Number of drives")
    time_factor: float = Field(0.00167, ge=0, description="Real seconds per library second; 0 = instantaneous")
    migrate_bytes: float = Field(32_000_000_000, ge=0, description="Flush to tape when this much waits; inf = never")
    migrate_age_s: float = Field(600, ge=0, description="... or the oldest waits this long, library s; inf = never")
    dwell_s: float = Field(600, ge=0, description="Quiet time before a tape is mounted for recalls, library s")
    evict_after_migration_s: float | None = Field(None, ge=0, description="Real s after which an unpinned copy leaves")
    evict_on_release: bool = Field(False, description="Evict at once when the last pin goes, and after migration")
    io_error_rate: float = Field(
        0, ge=0, le=1, description="Share of files whose first recall fails (real ones: 0.005)"
    )
    never_arrive_rate: float = Field(0, ge=0, le=1, description="Share of files that stay STARTED (real ones: 0.0003)")
    implicit_recall: bool = Field(False, description="A refused read of a nearline file starts its recall")
    worm: bool = Field(False, description="Write once: no overwriting, no deleting; the admin API's choice wins later")
    seed: int = Field(0, description="Seed of jitter and of the two rates")
    upload_expiry_s: float = Field(
        1_209_600, gt=0, description="An idle upload is dropped after this, real s (14 days)"
    )
    pin_lifetime_s: float = Field(86_400, ge=0, description="Pin when a stage request gives no diskLifetime, real s")
    idle_limit_s: float = Field(
        60,
        gt=0,
        description="A request that brings nothing for this long is given up, real s; so long may headers take",
    )
    repr_digest: bool = Field(False, description="Hash whole files while they arrive, for Repr-Digest (costs CPU)")
    log_level: str = Field("info", description="uvicorn's log level; requests are never logged")

    @property
    def cache_bytes(self) -> int:
        """Size of the disk cache."""
        return int(self.cache_mb * MB)

    @property
    def tape_bytes(self) -> int:
        """Capacity of one cartridge."""
        return int(self.tape_capacity_mb * MB)

    @property
    def max_upload_bytes(self) -> int:
        """The largest file that can ever be cached and written to one tape."""
        return min(self.cache_bytes, self.tape_bytes)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """Read `MOCK_LTS_<FIELD>`; unset or empty means the default."""
        given = {name: environ.get(f"MOCK_LTS_{name.upper()}", "") for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in given.items() if value})
