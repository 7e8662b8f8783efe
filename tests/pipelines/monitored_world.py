"""The planted world as a home that was served from: events after training, bundles, and answers logged by the
service's own writer. Stage: tests of pipelines. In: a folder, what shall be wrong. Out: `Monitored`. Absent: HTTP and
Feast: states are folded event by event, statistics come from the timeline, as the service has them.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.job import Job
from pipelines.training import open_job
from recsys.bundle import Bundle, load_bundle, save_bundle
from recsys.columns import AGE, GENDER, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, USER_ID
from recsys.data.tables import save_tables
from recsys.features.item_stats import ItemStats, day_of
from recsys.features.state import Event, StateBatch, UserState, state_after, state_batch
from recsys.monitoring.prediction_log import predictions_folder
from recsys.recommender import Filters, Recommendations, Recommender, RequestContext
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace, Workspace
from serving.prediction_log import PredictionLog
from tests.planted import (
    DAY,
    RECOMMENDER,
    planted_bundle,
    planted_facts,
    planted_probabilities,
    planted_rankers,
    planted_retrievers,
    planted_split,
    planted_tables,
    planted_timeline,
)

RIGHT, OTHER = "planted-1", "planted-2"
END = int(planted_tables().events[TIMESTAMP].max())
SERVED_DAY = int(day_of(END)) + 1  # from which on the statistics change no more
K = 5
Known = tuple[UserState, list[int]]


@dataclass(frozen=True)
class Served:
    """As `serving.model.ServedModel`, as far as the log reads it."""

    bundle: Bundle
    stats: ItemStats
    version: int = 1

    @property
    def recommender(self) -> Recommender:
        return self.bundle.recommender

    @property
    def catalogue(self) -> Any:
        return self.bundle.recommender.catalogue


@dataclass
class Call:
    request_id: str
    degraded: list[str] = field(default_factory=list)

    def elapsed_ms(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Asked:
    k: int = K
    filters: Filters = field(default_factory=Filters)
    diversity: float = 0.0
    length: int = K


@dataclass(frozen=True)
class Bug:
    """What goes wrong between what is known and what is logged."""

    known: Callable[[Known, list[Event]], Known] = lambda known, _events: known
    states: Callable[[StateBatch], StateBatch] = lambda states: states
    stats: Callable[[ItemStats], ItemStats] = lambda stats: stats
    named: Callable[[ItemStats], ItemStats] = lambda stats: stats  # what the log is told of them
    columns: tuple[str, str] | None = None  # swapped before the ranker sees them
    answered_by: str = RIGHT


@dataclass
class Monitored:
    home: DatasetWorkspace
    job: Job
    bundles: dict[str, Bundle]
    logged: list[dict[str, Any]] = field(default_factory=list)
    n_calls: int = 0

    def event(self, user_id: int, item_id: int, at: float, rating: float | None = 4.0, **more: Any) -> None:
        """A line of the event log; `at`, when it happened and was received, seconds UTC."""
        line = {"event_id": f"e{len(self.logged)}", USER_ID: user_id, ITEM_ID: item_id, RATING: rating}
        line |= {TIMESTAMP: int(at), "received": int(at), "bundle_id": RIGHT, **more}
        self.logged.append(line)
        day = datetime.fromtimestamp(line["received"], UTC).date().isoformat()
        self.home.events.mkdir(exist_ok=True)
        with (self.home.events / f"events-{day}.jsonl").open("a") as handle:
            handle.write(json.dumps(line) + "\n")

    def serve(
        self,
        moments: Sequence[tuple[int, float]],
        bug: Bug | None = None,
        asked: Asked | None = None,
        *,
        together: bool = False,
        degraded: Sequence[str] = (),
    ) -> list[Recommendations]:
        """Answer (user, moment in seconds UTC) pairs, each a call or all one call, and log them."""
        bug, asked, now = bug or Bug(), asked or Asked(), [0.0]
        log = PredictionLog(predictions_folder(self.home), clock=lambda: now[0])
        stats = bug.stats(planted_timeline().as_of(SERVED_DAY))
        model = Served(self.bundles[RIGHT], bug.named(stats))
        out = []
        for group in [list(moments)] if together else [[moment] for moment in moments]:
            now[0] = group[0][1]
            known = [bug.known(*self.known(user_id, now[0])) for user_id, _ in group]
            moment = [max(int(now[0]), max(state.timestamps, default=0) + 1) for state, _ in known]
            states = state_batch(model.catalogue, [s for s, _ in known], [seen for _, seen in known], moment)
            states = bug.states(states)
            path = self._path(bug, degraded)
            found = path.recommend(states, RequestContext(stats), asked.length, asked.filters, asked.diversity)
            shown = [idx[idx >= 0][: asked.k] for idx in model.catalogue.to_idx(found.item_ids)]
            self.n_calls += 1
            call = Call(f"call-{self.n_calls}", list(degraded))
            assert log.offer(call, model, [u for u, _ in group], states, found, shown, asked)  # type: ignore[arg-type]
            out.append(found)
        log.close()
        return out

    def known(self, user_id: int, at: float) -> tuple[Known, list[Event]]:
        """State and seen items by folding what happened and was received before, and those events."""
        events = planted_tables().events
        rows = events[(events[USER_ID] == user_id) & (events[TIMESTAMP] < at)]
        columns = (rows[name].tolist() for name in (ITEM_ID, RATING, TIMESTAMP))
        happened = [Event(*row) for row in zip(*columns, strict=True)]
        happened += [
            Event(line[ITEM_ID], line[RATING], line[TIMESTAMP])
            for line in self.logged
            if line[USER_ID] == user_id and line["received"] <= at and line.get("kind", "rating") == "rating"
        ]
        return folded(user_id, happened), happened

    def _path(self, bug: Bug, degraded: Sequence[str]) -> Recommender:
        path = self.bundles[bug.answered_by].recommender
        if "ranking" in degraded:
            return Recommender(path.catalogue, path.retrievers, None, path.settings)
        if bug.columns is None:
            return path
        a, b = (path.feature_names.index(name) for name in bug.columns)
        order = np.arange(len(path.feature_names))
        order[[a, b]] = order[[b, a]]
        swapped = Recommender(path.catalogue, path.retrievers, path.ranker, path.settings, path.probabilities)
        features = swapped.features
        swapped.features = lambda *given: np.ascontiguousarray(features(*given)[:, :, order])  # type: ignore[method-assign]
        return swapped


def folded(user_id: int, events: Sequence[Event]) -> Known:
    users = planted_tables().users.set_index(USER_ID)
    state = UserState(user_id)
    if user_id in users.index:
        row = users.loc[user_id]
        gender, age, job = ("" if pd.isna(row[name]) else row[name] for name in (GENDER, AGE, OCCUPATION))
        state = replace(state, gender=gender, age=int(age or 0), occupation=job)
    for event in sorted(events, key=lambda e: (e.timestamp, e.item_id)):
        state = state_after(state, event)
    return state, sorted({event.item_id for event in events})


def monitored(folder: Path) -> Monitored:
    """Two bundles: RIGHT, and OTHER with retrievers of another time. Some users rate more after training."""
    home = Workspace(folder).dataset("planted")
    save_tables(planted_tables(), home.data)
    Workspace(folder).remember("planted")
    bundles = {RIGHT: planted_bundle(home.bundles / RIGHT)}
    ranker, logistic = planted_rankers()
    retrievers = planted_retrievers(planted_split().t1)
    facts = planted_facts(OTHER)
    catalogue = bundles[RIGHT].recommender.catalogue
    save_bundle(
        home.bundles / OTHER, facts, catalogue, retrievers, ranker, logistic, RECOMMENDER, planted_probabilities()
    )
    bundles[OTHER] = load_bundle(home.bundles / OTHER)
    world = Monitored(home, open_job("planted", Settings(home=folder)), bundles)
    for n, user_id in enumerate(users()[:20]):
        seen = world.known(user_id, END + 1)[0][1]
        fresh = [int(i) for i in catalogue.item_ids if i not in seen]
        world.event(user_id, fresh[n % 5], END + 40 + n, 0.5 + n % 10 / 2)
    return world


def users() -> list[int]:
    return sorted(planted_tables().events[USER_ID].unique().tolist())


def moments(after: float = 0.0) -> list[tuple[int, float]]:
    """Every user, some seconds apart, so long after the item statistics have come to rest."""
    return [(user_id, SERVED_DAY * DAY + 3_600 + after + 7 * n) for n, user_id in enumerate(users())]


def unseen(world: Monitored, user_id: int, at: float) -> int:
    """The first item that a user has not rated by then."""
    seen = world.known(user_id, at)[0][1]
    return next(int(i) for i in world.bundles[RIGHT].recommender.catalogue.item_ids if i not in seen)


__all__ = [
    "DAY",
    "SERVED_DAY",
    "Asked",
    "Bug",
    "Monitored",
    "folded",
    "moments",
    "monitored",
    "unseen",
    "users",
]


@contextmanager
def forgetting(world: Monitored) -> Iterator[None]:
    """The home with its events; answers, reports and events of a test are forgotten after it."""
    logged = list(world.logged)
    files = {path: path.read_bytes() for path in world.home.events.iterdir()}
    yield
    world.logged[:] = logged
    for folder in (world.home.events, predictions_folder(world.home), world.home.reports, world.home.work):
        shutil.rmtree(folder, ignore_errors=True)
    world.home.events.mkdir()
    for path, content in files.items():
        path.write_bytes(content)
