"""What the service is told once, before it starts.

Stage: serving. In: `recsys.settings.Settings` and the options of a command. Out: `ServiceSettings`. Absent: the
environment, which only `recsys.settings` reads, and any connection.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from recsys.feature_store.config import FeatureStoreConfig
from recsys.home import DatasetHome
from recsys.settings import Settings


class ServiceSettings(BaseModel):
    """host, port        where it listens; only this machine unless told otherwise
    default_k, max_k    answers a request
    max_history         events that a request may bring along
    budget_ms           time of one answer, queueing included; the shares below are parts of it
    state_share         by then the user's state is read, or the answer goes on without it
    retrieval_share     by then features begin, or the answer keeps the order of retrieval
    last_share          after that not even retrieval begins: the cold-start list, computed at start
    threads             requests computed at once; the rest wait
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: DatasetHome
    registry_folder: Path
    tracking_uri: str | None = None
    feature_store: FeatureStoreConfig
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    default_k: int = Field(default=10, ge=1)
    max_k: int = Field(default=100, ge=1)
    max_history: int = Field(default=1_000, ge=1)
    max_body_bytes: int = Field(default=1_000_000, ge=1_000)
    budget_ms: float = Field(default=50.0, gt=0)
    state_share: float = Field(default=0.4, gt=0, le=1)
    retrieval_share: float = Field(default=0.6, gt=0, le=1)
    last_share: float = Field(default=0.8, gt=0, le=1)
    threads: int = Field(default=4, ge=1)

    @classmethod
    def build(cls, settings: Settings, home: DatasetHome, **options: Any) -> "ServiceSettings":
        """From the environment's settings, the chosen data set, and those options that were given (not None)."""
        given = {name: value for name, value in options.items() if value is not None}
        return cls(
            home=home,
            registry_folder=settings.paths().mlflow,
            tracking_uri=settings.mlflow_tracking_uri,
            feature_store=settings.feature_store(home),
            **given,
        )
