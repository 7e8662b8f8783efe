"""The versions that answer beside the champion, and which of them a user gets."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from recsys.errors import RegistryError, StoreError
from recsys.feature_store import FeatureStore
from recsys.registry import Registry
from recsys.registry.traffic import DIVERSITY, EXPLORATION, Traffic
from serving.model_lifecycle.served_model import ServedModel, item_stats
from serving.observability.metrics import Metrics
from serving.settings import ServiceSettings

RETRY_S: Final = 60.0  # until a version is tried again that could not be fetched
BY_CHAMPION: Final = ":champion"  # ends the name of an arm whose version is not there: the champion answers
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Assignment:
    """What a user is answered by. diversity: where the request names none; exploration: share of the slots."""

    model: ServedModel
    experiment: str | None = None
    arm: str | None = None
    diversity: float = 0.0
    exploration: float = 0.0


@dataclass(frozen=True, eq=False)
class LiveTraffic:
    """The registry's traffic and those of its versions that are loaded. Made whole, never changed."""

    traffic: Traffic = field(default_factory=Traffic)
    models: Mapping[int, ServedModel] = field(default_factory=dict)

    def assign(self, user_id: int | None, champion: ServedModel) -> Assignment:
        """Somebody without an id belongs to no experiment."""
        experiment = self.traffic.experiment
        if user_id is None or experiment is None:
            return Assignment(champion)
        arm = experiment.arm_of(user_id)
        model = champion if arm.version in (None, champion.version) else self.models.get(arm.version or 0)
        if model is None:
            return Assignment(champion, experiment.name, arm.name + BY_CHAMPION)
        settings = (float(arm.settings.get(name, 0.0)) for name in (DIVERSITY, EXPLORATION))
        return Assignment(model, experiment.name, arm.name, *settings)

    @property
    def shadow(self) -> ServedModel | None:
        return self.models.get(self.traffic.shadow or 0)


class TrafficFollower:
    """Loads what the traffic names. One thread at a time may call it; requests read `live`."""

    def __init__(self, settings: ServiceSettings, store: FeatureStore, registry: Registry, metrics: Metrics) -> None:
        self._settings, self._store, self._registry, self._metrics = settings, store, registry, metrics
        self.live = LiveTraffic()
        self._next_try: dict[int, float] = {}  # by version that could not be loaded; `time.monotonic()`

    def look(self, champion: ServedModel, now: int, again: bool) -> None:
        """Follow the registry's traffic; `again`: try also what was refused. Raises RegistryError where the registry
        cannot be asked; what was followed before stays."""
        traffic, before = self._registry.traffic(), self.live
        if again or traffic != before.traffic:
            self._next_try.clear()
        wanted = [version for version in traffic.versions if version != champion.version]
        models = {version: model for version, model in before.models.items() if version in wanted}
        if traffic != before.traffic:
            log.info("traffic is now %s", traffic.to_json())
            # What ended ends before anything is loaded: a rollback must not wait, and the memory is needed.
            same = traffic.experiment == before.traffic.experiment
            self.live = LiveTraffic(Traffic(experiment=traffic.experiment if same else None), models)
        del before
        missing = [v for v in wanted if v not in models and self._next_try.get(v, 0.0) <= time.monotonic()]
        loaded = {version: model for version in missing if (model := self._load(version, now)) is not None}
        self.live = LiveTraffic(traffic, models | loaded)

    def refresh_stats(self, now: int) -> None:
        """Read the statistics of items again, as of the last day that ended. Raises StoreError."""
        models = {
            version: ServedModel.build(version, old.bundle, item_stats(old.catalogue, self._store, now), now)
            for version, old in self.live.models.items()
        }
        self.live = LiveTraffic(self.live.traffic, models)

    def status(self) -> dict[str, Any]:
        """For `/v1/model`."""
        experiment = self.live.traffic.experiment
        return {
            "shadow": self.live.traffic.shadow,
            "experiment": experiment.name if experiment else None,
            "loaded": sorted(self.live.models),
            "not_loaded": sorted(self._next_try),
        }

    def _load(self, version: int, now: int) -> ServedModel | None:
        """None, with a line in the log and a count, where it cannot be served: the champion answers then."""
        try:
            model = ServedModel.load(self._settings, self._store, self._registry, self._registry.resolve(version), now)
        except Exception as error:
            away = isinstance(error, RegistryError | StoreError)
            self._next_try[version] = time.monotonic() + RETRY_S if away else math.inf
            log.error("version %d of the traffic is not served, the champion answers: %s", version, error)
            self._metrics.count("reload.failed" if away else "reload.refused")
            return None
        self._next_try.pop(version, None)
        return model
