"""The model that is served now, and how another takes its place.

Stage: serving. In: the registry's alias `champion`. Out: the model for one request. Absent: what is inside a model
(`model`), requests, and any decision about promotion: whoever moves the alias decides.

A request reads `champion.model` once and stays with it: whoever began on the old model ends on it. Another model is
loaded beside it, checked, made to answer what was asked lately, and put in its place in one step. One that cannot
be loaded is refused, and tried again only when the alias names another, or when somebody asks for it.
"""

import logging
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from recsys.arrays import IntArray
from recsys.columns import CHAMPION, ITEM_STATS_VIEW
from recsys.errors import RecsysError, RegistryError, StoreError
from recsys.feature_store import FeatureStore
from recsys.feature_store.tables import table_path
from recsys.features.item_stats import day_of
from recsys.features.state import UserState
from recsys.recommender import Recommender
from recsys.registry import VersionInfo
from serving.model import ServedModel, freeze_gc, registry_of, stats_of, unfreeze_gc
from serving.observability.metrics import Metrics
from serving.settings import ServiceSettings

Outcome = Literal["swapped", "unchanged", "refused", "failed"]
Mark = tuple[int, str]  # version and SHA-256 of its bundle

REMEMBERED = 64  # requests that a new model is rehearsed with
EARLIER = 20  # models of which the card tells
CLOSE_LIMIT_S = 5.0
GONE_AFTER_S = 60.0  # no request takes that long
PAUSE_S = 0.005  # between two rehearsed requests
LONGEST_PAUSE_S = 600.0  # between two looks at a registry or store that does not answer
# While a model is loaded, that thread hands over after this long; Python's own 5 ms would be added to every
# request's waits for the interpreter, of which one request has several.
SWITCH_INTERVAL_S = 0.0005
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    version: int
    bundle_id: str
    loaded_at: float
    replaced_at: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "bundle_id": self.bundle_id,
            "loaded_utc": _utc(self.loaded_at),
            "replaced_utc": _utc(self.replaced_at),
        }


class Champion:
    """Safe to share between threads. `start` follows the alias on a thread of its own; without it nothing changes but
    by `reload` and `refresh_stats`."""

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
        self._model = model
        self._loaded_at = clock()
        self._earlier: deque[Earlier] = deque(maxlen=EARLIER)
        self._recent: deque[tuple[UserState, IntArray]] = deque(maxlen=REMEMBERED)
        self._refused: Mark | None = None
        self._served: Mark | None = None  # unknown until the registry was asked
        self._last_check: float | None = None
        self._last_failure: str | None = None
        self._stats_looked_at = self._stats_mark()
        self._replaced: deque[tuple[weakref.ref[Recommender], float]] = deque()  # and when
        self._changing = threading.Lock()  # one change at a time
        self._stop = threading.Event()
        self._follower: threading.Thread | None = None
        self._tell()

    @property
    def model(self) -> ServedModel:
        """Read it once a request."""
        return self._model  # one reference, replaced in one step: no lock

    def remember(self, state: UserState, seen_ids: IntArray) -> None:
        """Keep what a request asked with; a new model answers it before it is served."""
        self._recent.append((state, seen_ids))

    def status(self) -> dict[str, Any]:
        """For `/v1/model`: when the model came, which there were before (newest first), and what went wrong last.
        A failure is shown until the alias was followed again."""
        return {
            "loaded_utc": _utc(self._loaded_at),
            "previous": [earlier.as_dict() for earlier in reversed(self._earlier)],
            "last_check_utc": None if self._last_check is None else _utc(self._last_check),
            "last_failure": self._last_failure,
        }

    def start(self) -> None:
        """Follow the alias from now on, unless `reload_s` is 0."""
        if self._settings.reload_s > 0 and self._follower is None:
            self._follower = threading.Thread(target=self._follow, name="follow-champion", daemon=True)
            self._follower.start()

    def close(self) -> None:
        """Stop following. A load that has begun is waited for a little, then left behind."""
        self._stop.set()
        if self._follower is not None:
            self._follower.join(CLOSE_LIMIT_S)

    def reload(self) -> Outcome:
        """Look at the alias now, and serve what it names; also one that was refused before. Then the newest statistics
        of items, where the model stayed."""
        self._let_go()
        outcome = self._look(again=True)
        if outcome == "unchanged":
            self.refresh_stats()
        return outcome

    def refresh_stats(self) -> bool:
        """Read the statistics of items again, as of the last day that ended; whether they changed. Raises StoreError
        where they cannot be read; the old ones stay."""
        with self._changing, _giving_way():
            now, mark = int(self._clock()), self._stats_mark()
            old = self._model
            stats = stats_of(old.catalogue, self._store, now)
            self._stats_looked_at = mark
            if stats.day == old.stats.day and np.array_equal(stats.decayed, old.stats.decayed):
                return False
            self._model = old.with_stats(stats, now)
            self._tell()
        log.info("statistics of items are now as of day %d", stats.day)
        return True

    # -- following ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        pause_s = self._settings.reload_s
        while not self._stop.wait(pause_s):
            try:
                self._let_go()
                outcome = self._look(again=False)
                if outcome != "failed" and self._stats_mark() != self._stats_looked_at:
                    self._new_stats()
            except Exception as error:  # whatever it is, the next look may find it mended
                outcome = self._fail("failed", "the champion could not be followed", error)
            longest_s = max(LONGEST_PAUSE_S, self._settings.reload_s)
            pause_s = min(pause_s * 2, longest_s) if outcome == "failed" else self._settings.reload_s

    def _stats_mark(self) -> tuple[int, int]:
        """Another one when a day has ended, and when the features stage has written its tables again."""
        try:
            written = table_path(self._settings.home, ITEM_STATS_VIEW).stat().st_mtime_ns
        except OSError:  # whoever reads the table says what is wrong
            written = 0
        return int(day_of(int(self._clock()))), written

    def _new_stats(self) -> None:
        try:
            self.refresh_stats()
        except Exception as error:
            self._fail("failed", "the statistics of items could not be read again", error)

    def _look(self, again: bool) -> Outcome:
        """Where the alias names something else than is served, load that. `again`: also what was refused before."""
        with self._changing:
            self._last_check = self._clock()
            try:
                info = self._registry.look_up(CHAMPION)
            except RegistryError as error:
                return self._fail("failed", "the registry could not be asked for the champion", error)
            named: Mark = (info.version, info.bundle_sha256)
            if self._served is None and info.version == self._model.version:
                self._served = named
            if named == self._served:
                self._last_failure = None
                return "unchanged"
            if named == self._refused and not again:
                return "unchanged"
            try:
                with _giving_way():
                    self._swap(self._load(info))
            except (RegistryError, StoreError) as error:  # away rather than broken, perhaps: tried again, less often
                return self._fail("failed", f"version {info.version} could not be fetched", error)
            except Exception as error:
                self._refused = named
                return self._fail("refused", f"version {info.version} was refused", error)
            self._served, self._refused, self._last_failure = named, None, None
            self._metrics.reload("swapped")
            return "swapped"

    def _load(self, info: VersionInfo) -> ServedModel:
        now = int(self._clock())
        model = ServedModel.of_version(self._settings, self._store, self._registry, info, now)
        model.warm_up(list(self._recent), now, PAUSE_S)
        return model

    def _swap(self, model: ServedModel) -> None:
        now, old = self._clock(), self._model
        self._model = model
        facts = old.bundle.facts
        self._earlier.append(Earlier(old.version, facts.bundle_id, self._loaded_at, now))
        self._loaded_at = now
        self._replaced.append((weakref.ref(old.recommender), now))
        self._tell()
        log.info("version %d, %s, replaces version %d", model.version, model.bundle.facts.bundle_id, old.version)
        freeze_gc()

    def _let_go(self) -> None:
        """A model that was replaced goes when its last request ends, by its count of references. Where one is still
        there long after, a cycle holds it, which the collector no longer sees among what was settled: walk everything
        once."""
        due = self._clock() - GONE_AFTER_S
        held = False
        while self._replaced and self._replaced[0][1] <= due:
            model, _ = self._replaced.popleft()
            held |= model() is not None
        if held:
            log.warning("a model that was replaced is held by something; all objects are walked to let it go")
            unfreeze_gc()

    def _fail(self, outcome: Literal["refused", "failed"], what: str, error: Exception) -> Outcome:
        unexpected = not isinstance(error, RecsysError)
        log.error("%s: %s; version %d stays", what, error, self._model.version, exc_info=error if unexpected else None)
        # The card is for everybody: the log alone knows folders and addresses.
        self._last_failure = f"{_utc(self._clock())}: {what} ({type(error).__name__}); the log of the service says why"
        self._metrics.reload(outcome)
        return outcome

    def _tell(self) -> None:
        facts = self._model.bundle.facts
        self._metrics.model(
            version=self._model.version,
            bundle_id=facts.bundle_id,
            dataset=facts.dataset.name,
            trained_through=facts.trained_through,
            loaded_at=self._loaded_at,
            item_statistics_day=self._model.stats.day,
        )


@contextmanager
def _giving_way() -> Iterator[None]:
    """Let requests in between more often than Python would."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
