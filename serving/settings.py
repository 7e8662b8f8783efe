"""What the service is told once, before it starts.

Stage: serving. In: `recsys.settings.Settings` and the options of a command. Out: `ServiceSettings`. Absent: the
environment, which only `recsys.settings` reads, and any connection.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from recsys.feature_store.config import FeatureStoreConfig
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace


class ServiceSettings(BaseModel):
    """host, port        where it listens; only this machine unless told otherwise
    default_k, max_k    answers a request
    max_history         events that a request may bring along
    budget_ms           time of one answer, queueing included; the shares below are parts of it
    state_share         by then the user's state is read, or the answer goes on without it; a file is read to its end
    retrieval_share     by then features begin, or the answer keeps the order of retrieval
    explain_share       by then explanations are expected to be made, or their contributions are left out
    last_share          after that not even retrieval begins: the cold-start list, computed at start
    threads             that compute answers; 0: the event loop does, one answer a turn, which is faster (ADR 0028)
    io_threads          events and reads of the store at once
    max_queue           requests that may wait for each of the two; the next one is told to come back
    predictions_share   of the answers that are logged with their features (`prediction_log`); 0 logs none
    predictions_bytes, predictions_days   bounds of that log; the oldest files go first
    reload_s            how often the champion's alias is looked at; 0 never
    api_key             for writes and /v1/admin; needed beyond this machine
    rate_per_s, burst   requests of one client; None is 100 and 200 beyond this machine, no limit on it; 0 is no limit
    otel_endpoint       where spans are sent (`tracing`); nowhere by default
    body_s              a body must have arrived by then
    keep_alive_s        how long a connection may be idle
    drain_s, shutdown_s when told to stop: answers go on that long, closing connections; then what is in flight is given
                        that long to end
    allowed_origins     whose pages may read answers (CORS), as "https://example.org"; nobody's by default
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: DatasetWorkspace
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
    retrieval_share: float = Field(default=0.85, gt=0, le=1)
    explain_share: float = Field(default=0.8, gt=0, le=1)
    last_share: float = Field(default=0.8, gt=0, le=1)
    threads: int = Field(default=0, ge=0)
    io_threads: int = Field(default=4, ge=1)
    max_queue: int = Field(default=64, ge=1)
    predictions_share: float = Field(default=1.0, ge=0, le=1)
    predictions_bytes: int = Field(default=2 * 1024**3, ge=1)
    predictions_days: float = Field(default=30.0, gt=0)
    reload_s: float = Field(default=5.0, ge=0)
    api_key: SecretStr | None = None
    rate_per_s: float | None = Field(default=None, ge=0)
    burst: int | None = Field(default=None, ge=1)
    otel_endpoint: str | None = None
    body_s: float = Field(default=10.0, gt=0)
    keep_alive_s: int = Field(default=30, ge=1)
    drain_s: float = Field(default=0.5, ge=0)
    shutdown_s: int = Field(default=10, ge=1)
    allowed_origins: tuple[str, ...] = ()

    @classmethod
    def build(cls, settings: Settings, home: DatasetWorkspace, **options: Any) -> "ServiceSettings":
        """From the environment's settings, the chosen data set, and those options that were given (not None)."""
        given = {name: value for name, value in options.items() if value is not None}
        return cls(
            home=home,
            registry_folder=settings.paths().mlflow,
            tracking_uri=settings.mlflow_tracking_uri,
            feature_store=settings.feature_store(home),
            api_key=settings.api_key,
            otel_endpoint=settings.otel_endpoint,
            **given,
        )
