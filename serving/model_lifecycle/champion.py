"""The model that is served now, and how another takes its place.

The registry's alias `champion` is looked at every few seconds; whoever moves it decides. Another model is tried in a
child process, loaded beside the old one, made to answer, and put in its place in one step. A request reads
`champion.model` once and stays with it to its end. A version that cannot be loaded is refused, and tried again only
when the alias names another or somebody asks for it. The registry's traffic is followed on the same thread
(`live_traffic`).
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from recsys.columns import CHAMPION, ITEM_STATS_VIEW
from recsys.errors import RecsysError, RegistryError, StoreError
from recsys.feature_store import FeatureStore
from recsys.feature_store.tables import table_path
from recsys.features.item_stats import day_of
from serving.model_lifecycle.live_traffic import LiveTraffic, TrafficFollower
from serving.model_lifecycle.served_model import ServedModel, data_clock, item_stats, registry_of
from serving.observability.metrics import Metrics
from serving.settings import ServiceSettings

Outcome = Literal["swapped", "unchanged", "refused", "failed"]
CLOSE_LIMIT_S = 5.0
LONGEST_PAUSE_S = 600.0  # between two looks at a registry or store that does not answer
log = logging.getLogger(__name__)


class Champion:
    """Safe to share between threads. `start` follows the alias on a thread of its own."""

    def __init__(
        self,
        settings: ServiceSettings,
        store: FeatureStore,
        metrics: Metrics,
        model: ServedModel,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._store, self._metrics, self._clock = settings, store, metrics, clock
        self._registry = registry_of(settings)
        self._beside = TrafficFollower(settings, store, self._registry, metrics)
        self._model, self._loaded_at = model, clock()
        self._served: str | None = None  # SHA-256 of its bundle; unknown until the registry was asked
        self._refused: str | None = None
        self._last_check: float | None = None
        self._last_failure: str | None = None
        self.data_clock = data_clock(settings, model.bundle, clock())
        self._stats_mark = self._newest_stats_mark()
        self._changing = threading.Lock()  # one change at a time
        self._stop = threading.Event()
        self._follower: threading.Thread | None = None
        self._count_model()

    @property
    def model(self) -> ServedModel:
        """Read it once a request."""
        return self._model  # one reference, replaced in one step: no lock

    @property
    def traffic(self) -> LiveTraffic:
        """Read it once a request."""
        return self._beside.live

    def now(self) -> int:
        """In the time of the data that the model learnt from."""
        return self.data_clock.to_data(int(self._clock()))

    def status(self) -> dict[str, Any]:
        """For `/v1/model`. A failure is shown until the alias was followed again."""
        return {
            "loaded_utc": _utc(self._loaded_at),
            "last_check_utc": None if self._last_check is None else _utc(self._last_check),
            "last_failure": self._last_failure,
            "traffic": self._beside.status(),
        }

    def start(self) -> None:
        """Follow the alias from now on, unless `reload_s` is 0."""
        if self._settings.reload_s > 0 and self._follower is None:
            self._follower = threading.Thread(target=self._follow, name="follow-champion", daemon=True)
            self._follower.start()

    def close(self) -> None:
        """A load that has begun is waited for a little, then left behind."""
        self._stop.set()
        if self._follower is not None:
            self._follower.join(CLOSE_LIMIT_S)

    def reload(self) -> Outcome:
        """Look at the alias now, and serve what it names, also one that was refused before; where the model stays, read
        the newest statistics of items."""
        outcome = self._look(again=True)
        self.look_at_traffic(again=True)
        if outcome == "unchanged":
            self.refresh_stats()
        return outcome

    def look_at_traffic(self, again: bool = False) -> None:
        """Serve what the registry's traffic names beside the champion. `again`: also what was refused before."""
        with self._changing:
            try:
                self._beside.look(self._model, int(self._clock()), again)
            except RegistryError as error:
                self._fail("failed", "the registry could not be asked for the traffic", error)

    def refresh_stats(self) -> bool:
        """Read the statistics of items again, as of the last day that ended; whether they changed. Raises StoreError
        where they cannot be read; the old ones stay."""
        with self._changing:
            now, mark = self.now(), self._newest_stats_mark()
            old = self._model
            stats = item_stats(old.catalogue, self._store, now)
            if stats.day == old.stats.day and np.array_equal(stats.decayed, old.stats.decayed):
                self._stats_mark = mark
                return False
            self._beside.refresh_stats(now)
            self._model = ServedModel.build(old.version, old.bundle, stats, now)
            self._stats_mark = mark
            self._count_model()
        log.info("statistics of items are now as of day %d", stats.day)
        return True

    def _follow(self) -> None:
        pause_s = self._settings.reload_s
        while not self._stop.wait(pause_s):
            try:
                outcome = self._look(again=False)
                if outcome != "failed":
                    self.look_at_traffic()
                if outcome != "failed" and self._newest_stats_mark() != self._stats_mark:
                    self.refresh_stats()
            except Exception as error:  # whatever it is, the next look may find it mended
                outcome = self._fail("failed", "the champion could not be followed", error)
            longest_s = max(LONGEST_PAUSE_S, self._settings.reload_s)
            pause_s = min(pause_s * 2, longest_s) if outcome == "failed" else self._settings.reload_s

    def _newest_stats_mark(self) -> tuple[int, int]:
        """Another one when a day has ended, and when the features stage has written its tables again."""
        try:
            written = table_path(self._settings.home, ITEM_STATS_VIEW).stat().st_mtime_ns
        except OSError:  # whoever reads the table says what is wrong
            written = 0
        return int(day_of(self.now())), written

    def _look(self, again: bool) -> Outcome:
        """Where the alias names something else than is served, load that. `again`: also what was refused before."""
        with self._changing:
            self._last_check = self._clock()
            self.data_clock = data_clock(self._settings, self._model.bundle, self._last_check)
            try:
                info = self._registry.resolve(CHAMPION)
            except RegistryError as error:
                return self._fail("failed", "the registry could not be asked for the champion", error)
            if self._served is None and info.version == self._model.version:
                self._served = info.bundle_sha256
            if info.bundle_sha256 == self._served and info.version == self._model.version:
                self._last_failure = None
                return "unchanged"
            if info.bundle_sha256 == self._refused and not again:
                return "unchanged"
            try:
                model = self.traffic.models.get(info.version) or ServedModel.load(
                    self._settings, self._store, self._registry, info, int(self._clock())
                )
            except (RegistryError, StoreError) as error:  # away rather than broken, perhaps: tried again, less often
                return self._fail("failed", f"version {info.version} could not be fetched", error)
            except Exception as error:
                self._refused = info.bundle_sha256
                return self._fail("refused", f"version {info.version} was refused", error)
            log.info("version %d replaces version %d", model.version, self._model.version)
            self._model, self._loaded_at = model, self._clock()
            self._served, self._refused, self._last_failure = info.bundle_sha256, None, None
            self._count_model()
            self._metrics.count("reload.swapped")
            return "swapped"

    def _fail(self, outcome: Literal["refused", "failed"], what: str, error: Exception) -> Outcome:
        unexpected = not isinstance(error, RecsysError)
        log.error("%s: %s; version %d stays", what, error, self._model.version, exc_info=error if unexpected else None)
        # The card is for everybody: the log alone knows folders and addresses.
        self._last_failure = f"{_utc(self._clock())}: {what} ({type(error).__name__}); the log of the service says why"
        self._metrics.count(f"reload.{outcome}")
        return outcome

    def _count_model(self) -> None:
        facts = self._model.bundle.facts
        self._metrics.model(
            version=self._model.version,
            bundle_id=facts.bundle_id,
            dataset=facts.dataset.name,
            trained_through=facts.trained_through,
            loaded_at=self._loaded_at,
            statistics_day=self._model.stats.day,
        )


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
