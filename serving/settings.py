"""The settings of the service, fixed before it starts.

`recsys serve` builds it from the environment's settings and its own options. Workers are processes of their own, which
build it again: the options travel in OPTIONS_VARIABLE, secrets stay in the variables where they came from.
"""

import ipaddress
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from recsys.errors import ConfigError
from recsys.events.table import EventTable
from recsys.feature_store.config import FeatureStoreConfig
from recsys.settings import Settings, read_settings
from recsys.workspace import DatasetWorkspace

OPTIONS_VARIABLE = "SERVE_OPTIONS"


class ServiceSettings(BaseModel):
    """host, port          where it listens; only this machine unless another host is named
    budget_ms           time of one answer, waiting included
    max_in_flight       requests of one worker at once; the next one gets a 503
    predictions_share   of the answers that are logged with their features (`prediction_log`); 0 logs none
    shadow_share        of the requests for one user that the version in shadow scores too, after the answer
    reload_s            how often the champion's alias and the traffic are looked at; 0 never
    api_key             for writes and /v1/admin; needed beyond this machine
    otel_endpoint       where spans are sent (`tracing`); nowhere by default
    log_format, log_level   text or json; debug, info, warning or error
    tried_bundle        SHA-256 of the bundle that need not be tried again: whoever started the workers did
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    home: DatasetWorkspace
    events: EventTable
    registry_folder: Path
    tracking_uri: str | None = None
    feature_store: FeatureStoreConfig
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    workers: int = Field(default=1, ge=1)
    budget_ms: float = Field(default=50.0, gt=0)
    max_in_flight: int = Field(default=64, ge=1)
    predictions_share: float = Field(default=1.0, ge=0, le=1)
    shadow_share: float = Field(default=0.1, ge=0, le=1)
    reload_s: float = Field(default=5.0, ge=0)
    api_key: SecretStr | None = None
    otel_endpoint: str | None = None
    log_format: str = "text"
    log_level: str = "info"
    tried_bundle: str | None = None

    @model_validator(mode="after")
    def _not_open_to_a_network(self) -> "ServiceSettings":
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"the service would listen on {self.host}, beyond this machine, and take events from anybody; "
                "set RECSYS_API_KEY to a long random text, or listen on 127.0.0.1"
            )
        return self

    @classmethod
    def build(cls, settings: Settings, home: DatasetWorkspace, **options: Any) -> "ServiceSettings":
        """From the environment's settings, the chosen data set, and those options that were given (not None). Raises
        ConfigError for a value that cannot be."""
        given = {name: value for name, value in options.items() if value is not None}
        try:
            return cls(
                home=home,
                events=settings.event_table(home),
                registry_folder=settings.paths().mlflow,
                tracking_uri=settings.mlflow_tracking_uri,
                feature_store=settings.feature_store(home),
                api_key=settings.api_key,
                otel_endpoint=settings.otel_endpoint,
                **given,
            )
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            name = f"{first['loc'][0]}: " if first["loc"] else ""
            raise ConfigError(f"{name}{first['msg'].removeprefix('Value error, ')}.") from None

    @classmethod
    def choose(cls, home: str | Path | None, dataset: str | None, **options: Any) -> "ServiceSettings":
        """For a data set of this home. Raises ConfigError where there is none."""
        settings = read_settings(None if home is None else Path(home))
        return cls.build(settings, settings.paths().choose(dataset or settings.dataset), **options)

    @classmethod
    def from_environment(cls) -> "ServiceSettings":
        """As `hand_down` left them for this process."""
        return cls.choose(**json.loads(os.environ.get(OPTIONS_VARIABLE, '{"home": null, "dataset": null}')))


def hand_down(options: Mapping[str, Any]) -> None:
    """Leave the arguments of `ServiceSettings.choose` for the worker processes that this one starts."""
    os.environ[OPTIONS_VARIABLE] = json.dumps(dict(options))


def is_loopback(host: str) -> bool:
    """Whether an address or name reaches this machine only. A name that is not `localhost` is not resolved: False."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
