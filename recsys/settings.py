"""The one place where the environment is read: variables that begin with RECSYS_, and MLFLOW_TRACKING_URI.

An empty one counts as unset, as docker compose writes `${X:-}`.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from recsys.errors import ConfigError
from recsys.events import EventTable, sqlite_url
from recsys.feature_store.config import FeatureStoreConfig
from recsys.workspace import DatasetWorkspace, Workspace

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Where a run writes and which servers it talks to; every default is embedded, no server needed.

    `api_key` opens the service's writes; `otel_endpoint` is where it sends spans.
    """

    model_config = SettingsConfigDict(env_prefix="RECSYS_", env_ignore_empty=True, frozen=True, extra="ignore")

    home: Path = Path(".recsys")
    dataset: str | None = None
    feature_repo: Path = REPOSITORY / "feature_repo"
    online_store: Literal["sqlite", "redis"] = "sqlite"
    redis_connection: str | None = None
    registry_path: str | None = None
    events_url: str | None = None  # of one data set's event table; None is a SQLite file in its home
    api_key: SecretStr | None = Field(default=None, min_length=16)
    otel_endpoint: str | None = None
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, key: SecretStr | None) -> SecretStr | None:
        text = "" if key is None else key.get_secret_value()
        if text != text.strip() or not (text.isascii() and text.isprintable()):
            raise ValueError("a header can carry printable ASCII only, without spaces at either end")
        return key

    def paths(self) -> Workspace:
        return Workspace(self.home.expanduser().resolve())

    def feature_store(self, home: DatasetWorkspace) -> FeatureStoreConfig:
        """Raises ConfigError for a Redis without its address, and for an address without Redis."""
        if self.online_store == "redis" and self.redis_connection is None:
            missing = "set RECSYS_REDIS_CONNECTION as well, to host:port[,option=value]."
            raise ConfigError(f"RECSYS_ONLINE_STORE is redis: {missing}")
        if self.online_store != "redis" and self.redis_connection is not None:
            raise ConfigError("RECSYS_REDIS_CONNECTION is set: set RECSYS_ONLINE_STORE to redis as well, or unset it.")
        return FeatureStoreConfig(
            home=home,
            repo=self.feature_repo,
            online_store=self.online_store,
            redis_connection=self.redis_connection,
            registry_path=self.registry_path,
            events_url=self.events_url,
        )

    def event_table(self, home: DatasetWorkspace) -> EventTable:
        """The events of one data set. Raises ConfigError for an address that no event table can have."""
        if self.events_url is None:
            return EventTable(sqlite_url(home.event_file))
        try:
            url = make_url(self.events_url)
        except ArgumentError:  # without its text, which may hold a password
            raise ConfigError("RECSYS_EVENTS_URL is no database URL; give postgresql+psycopg://user@host/db.") from None
        if url.drivername not in ("sqlite", "postgresql+psycopg") or not url.database:
            raise ConfigError(
                f"RECSYS_EVENTS_URL is {url.render_as_string()}; use postgresql+psycopg://user@host/db or sqlite:////file."
            )
        return EventTable(url)


FEAST_OWN = {"RECSYS_FEATURES"}  # what `feature_repo` reads when the `feast` command is used; see also RECSYS_FEAST_*

SECRETS = {"RECSYS_API_KEY"}  # never shown, not even when they are wrong


def read_settings(home: Path | None = None) -> Settings:
    """The environment's settings, with the command's home on top. Raises ConfigError for a value that cannot be and for
    a variable that begins with RECSYS_ and means nothing."""
    fields = Settings.model_fields
    known = {f"RECSYS_{name.upper()}" for name in fields if not fields[name].validation_alias} | FEAST_OWN
    given = {name.upper() for name in os.environ if os.environ[name] and name.upper().startswith("RECSYS_")}
    strange = sorted(n for n in given - known if not n.startswith("RECSYS_FEAST_"))
    if strange:
        names = ", ".join([*sorted(known), "MLFLOW_TRACKING_URI"])
        raise ConfigError(f"The environment sets {strange[0]}, which means nothing here; known are {names}.")
    try:
        return Settings() if home is None else Settings(home=home)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        name = name if name.startswith("MLFLOW_") else f"RECSYS_{name}"
        if name in SECRETS:  # without its cause: a traceback would show what was given
            raise ConfigError(f"The setting {name} cannot be used: {first['msg']}.") from None
        raise ConfigError(f"The setting {name} is {first.get('input')!r}: {first['msg']}.") from error
