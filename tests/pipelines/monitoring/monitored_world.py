"""The planted world as a home that was served from: events after training, two bundles, and answers that the service's
own log wrote. States are folded event by event, as the service does, and may be made wrong on the way."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.monitoring.run import check_home
from pipelines.monitoring.skew import SkewReport
from recsys.bundle import Bundle, load_bundle, save_bundle
from recsys.columns import AGE, GENDER, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, USER_ID
from recsys.data.tables import save_tables
from recsys.events import EventTable, NewEvent
from recsys.features.item_stats import ItemStats, day_of
from recsys.features.state import Event, StateBatch, UserState, fold, state_batch
from recsys.filters import Filters
from recsys.monitoring.prediction_log import AnsweredRequest, PredictionLog, predictions_folder
from recsys.recommender import Recommendations, Recommender, RequestContext
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace, Workspace
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


@dataclass(frozen=True)
class Bug:
    """What goes wrong between what is known and what is served."""

    events: Callable[[list[Event]], list[Event]] = lambda events: events
    states: Callable[[StateBatch], StateBatch] = lambda states: states
    stats: Callable[[ItemStats], ItemStats] = lambda stats: stats
    named_day: int | None = None  # what the log is told of the statistics
    columns: tuple[str, str] | None = None  # swapped before the ranker sees them
    answered_by: str = RIGHT


NO_BUG = Bug()


@dataclass
class Monitored:
    home: DatasetWorkspace
    settings: Settings
    table: EventTable
    bundles: dict[str, Bundle]
    n_calls: int = 0
    logged: dict[str, object] = field(default_factory=dict)  # what every answer is logged with instead of the truth

    def event(
        self,
        user_id: int,
        item_id: int,
        at: float,
        rating: float | None = 4.0,
        kind: str = "rating",
        request_id: str | None = None,
        occurred_at: int | None = None,
    ) -> int:
        """An event received at a moment, and its number in the table."""
        number = self.table.safe_seq() + 1
        new = NewEvent(f"e{number}", user_id, item_id, kind, rating, occurred_at or int(at), at, request_id)
        return self.table.append([new])[0].seq

    def serve(
        self,
        moments: Sequence[tuple[int, float]],
        bug: Bug = NO_BUG,
        *,
        length: int = K,
        filters: Filters | None = None,
        diversity: float = 0.0,
        degraded: tuple[str, ...] = (),
    ) -> list[Recommendations]:
        """Answer (user, moment in seconds UTC) pairs, each a call, and log them."""
        log = PredictionLog(predictions_folder(self.home), most_days=1e6)  # the data are decades old
        stats = bug.stats(planted_timeline().as_of(SERVED_DAY))
        bundle = self.bundles[RIGHT]
        catalogue = bundle.recommender.catalogue
        out = []
        for user_id, at in moments:
            state = self.state(user_id, at, bug)
            now = max(int(at), max(state.timestamps, default=0) + 1)
            batch = bug.states(state_batch(catalogue, [state], now))
            path = self._path(bug, degraded)
            found = path.recommend(batch, RequestContext(stats), length, filters, diversity)
            self.n_calls += 1
            ids = found.item_ids[0]
            answer = AnsweredRequest(
                request_id=f"call-{self.n_calls}",
                user_id=user_id,
                state_seq=state.through_seq,
                received_at=at,
                now=int(batch.now[0]),
                bundle_id=RIGHT,
                version=1,
                statistics_day=stats.day if bug.named_day is None else bug.named_day,
                item_ids=ids[ids >= 0][:K],
                k=K,
                list_length=length,
                recommendations=found,
                feature_names=bundle.recommender.feature_names,
                filters=filters or Filters(),
                diversity=diversity,
                degraded=degraded,
            )
            assert log.offer(replace(answer, **self.logged))  # type: ignore[arg-type]
            out.append(found)
        log.close()
        return out

    def check(self, *, drift: bool = False, since: float = 0.0) -> SkewReport:
        return check_home(self.home, self.settings, drift=drift, since=since)

    def state(self, user_id: int, at: float, bug: Bug = NO_BUG) -> UserState:
        """Of what was received before: the data set, then the event table."""
        rows = planted_tables().events
        rows = rows[(rows[USER_ID] == user_id)].sort_values([TIMESTAMP, ITEM_ID])
        happened = [Event(*row) for row in zip(rows[ITEM_ID], rows[RATING], rows[TIMESTAMP], strict=True)]
        later = [e for e in self.table.after(user_id, 0) if e.received_at <= at]
        happened += [Event(e.item_id, e.value, e.occurred_at) for e in later if e.kind == "rating" and e.value]
        users = planted_tables().users.set_index(USER_ID)
        state = UserState(user_id, through_seq=max((e.seq for e in later), default=0))
        if user_id in users.index:
            row = users.loc[user_id]
            gender, age, job = ("" if pd.isna(row[name]) else row[name] for name in (GENDER, AGE, OCCUPATION))
            state = replace(state, gender=gender, age=int(age or 0), occupation=job)
        return fold(state, bug.events(happened))

    def unseen(self, user_id: int, at: float, n: int = 0) -> int:
        """The n-th item that a user has not rated by then."""
        seen = self.state(user_id, at).seen_item_ids
        return [int(i) for i in self.bundles[RIGHT].recommender.catalogue.item_ids if i not in seen][n]

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


def monitored(folder: Path) -> Monitored:
    """Two bundles: RIGHT, and OTHER with retrievers of another time. Some users rate more after training."""
    home = Workspace(folder).dataset("planted")
    save_tables(planted_tables(), home.data)
    Workspace(folder).remember("planted")
    settings = Settings(home=folder)
    bundles = {RIGHT: planted_bundle(home.bundles / RIGHT)}
    ranker, logistic = planted_rankers()
    catalogue = bundles[RIGHT].recommender.catalogue
    retrievers = planted_retrievers(planted_split().t1)
    probabilities = planted_probabilities()
    save_bundle(
        home.bundles / OTHER, planted_facts(OTHER), catalogue, retrievers, ranker, logistic, RECOMMENDER, probabilities
    )
    bundles[OTHER] = load_bundle(home.bundles / OTHER)
    world = Monitored(home, settings, settings.event_table(home), bundles)
    for n, user_id in enumerate(users()[:20]):
        world.event(user_id, world.unseen(user_id, END, n % 5), END + 40.0 + n, 0.5 + n % 10 / 2)
    return world


@contextmanager
def forgetting(world: Monitored) -> Iterator[Monitored]:
    """The home with its events; answers, reports and events of a test are forgotten after it."""
    world.table.close()
    kept = world.home.root / "kept.db"
    path = Path(str(world.table.url.database))
    shutil.copy(path, kept)
    yield world
    world.table.close()
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    shutil.copy(kept, path)
    world.logged.clear()
    world.n_calls = 0
    for folder in (predictions_folder(world.home), world.home.reports, world.home.work, world.home.training_set):
        shutil.rmtree(folder, ignore_errors=True)


def users() -> list[int]:
    return sorted(planted_tables().events[USER_ID].unique().tolist())


def moments(after: float = 0.0) -> list[tuple[int, float]]:
    """Every user, some seconds apart, so long after the item statistics have come to rest."""
    return [(user_id, SERVED_DAY * DAY + 3_600 + after + 7 * n) for n, user_id in enumerate(users())]
