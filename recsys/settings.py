"""The one place where the environment is read.

Stage: the edges (commands and the service's entry point). In: variables that begin with RECSYS_, and
MLFLOW_TRACKING_URI. Out: `Settings`, handed down as plain values. Absent: everything else; no other module of the
library may import this one or look at the environment.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from recsys.feature_store.config import FeatureStoreConfig
from recsys.home import DatasetHome, Home

REPOSITORY = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Where a run writes and which servers it talks to; every default is embedded, no server needed."""

    model_config = SettingsConfigDict(env_prefix="RECSYS_", frozen=True, extra="ignore")

    home: Path = Path(".recsys")
    dataset: str | None = None
    feature_repo: Path = REPOSITORY / "feature_repo"
    online_store: Literal["sqlite", "redis"] = "sqlite"
    redis_connection: str | None = None
    registry_path: str | None = None
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")

    def paths(self) -> Home:
        return Home(self.home.expanduser().resolve())

    def feature_store(self, home: DatasetHome) -> FeatureStoreConfig:
        return FeatureStoreConfig(
            home=home,
            repo=self.feature_repo,
            online_store=self.online_store,
            redis_connection=self.redis_connection,
            registry_path=self.registry_path,
        )
