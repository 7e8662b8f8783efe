"""The planted world as a home that was served from: events after training, two bundles, and answers that the service's
own log wrote. States are folded event by event, as the service does, and may be made wrong on the way."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.monitoring.skew import SkewReport, check_home
from recsys.bundle import load_bundle, save_bundle
from recsys.columns import AGE, GENDER, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, USER_ID
from recsys.data.tables import save_tables
from recsys.events import NewEvent
from recsys.features.item_stats import ItemStats, day_of
from recsys.features.state import Event, StateBatch, UserState, fold, state_batch
from recsys.filters import Filters
from recsys.monitoring.prediction_log import AnsweredRequest, PredictionLog, predictions_folder
from recsys.recommender import Recommendations, Recommender, RequestContext
from recsys.settings import Settings
from recsys.workspace import Workspace
from tests.planted import (
    DAY,
    RECOMMENDER,
    planted_bundle,
    planted_catalogue,
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
USERS = sorted(planted_tables().events[USER_ID].unique().tolist())
K = 5


@dataclass(frozen=True)
class Bug:
    """What goes wrong between what is known and what is served."""

    events: Callable[[list[Event]], list[Event]] = lambda events: events
    states: Callable[[StateBatch], StateBatch] = lambda states: states
    stats: Callable[[ItemStats], ItemStats] = lambda stats: stats
    columns: tuple[str, str] | None = None  # swapped before the ranker sees them
    answered_by: str = RIGHT


NO_BUG = Bug()


class Monitored:
    def __init__(self, root: Path) -> None:
        self.home, self.settings = Workspace(root).dataset("planted"), Settings(home=root)
        self.table = self.settings.event_table(self.home)
        self.recommenders = {name: load_bundle(self.home.bundles / name).recommender for name in (RIGHT, OTHER)}
        self.n_calls = 0

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
        **logged: Any,
    ) -> list[Recommendations]:
        """Answer (user, moment in seconds UTC) pairs, each a call, and log them; `logged` instead of the truth."""
        log = PredictionLog(predictions_folder(self.home), most_days=1e6)  # the data are decades old
        stats = bug.stats(planted_timeline().as_of(SERVED_DAY))
        recommender = self._recommender(bug)
        out = []
        for user_id, at in moments:
            state = self.state(user_id, at, bug)
            now = max(int(at), max(state.timestamps, default=0) + 1)
            batch = bug.states(state_batch(planted_catalogue(), [state], now))
            made = recommender.recommend(batch, RequestContext(stats), length, filters, diversity)
            self.n_calls += 1
            ids = made.item_ids[0]
            answer = AnsweredRequest(
                request_id=f"call-{self.n_calls}",
                user_id=user_id,
                state_seq=state.through_seq,
                received_at=at,
                now=int(batch.now[0]),
                bundle_id=RIGHT,
                version=1,
                statistics_day=stats.day,
                item_ids=ids[ids >= 0][:K],
                k=K,
                list_length=length,
                recommendations=made,
                feature_names=recommender.feature_names,
                filters=filters or Filters(),
                diversity=diversity,
            )
            assert log.offer(replace(answer, **logged))
            out.append(made)
        log.close()
        return out

    def check(self, since: float = 0.0) -> SkewReport:
        return check_home(self.home, self.settings, since=since)

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
        return [int(i) for i in planted_catalogue().item_ids if i not in seen][n]

    def _recommender(self, bug: Bug) -> Recommender:
        recommender = self.recommenders[bug.answered_by]
        if bug.columns is None:
            return recommender
        a, b = (recommender.feature_names.index(name) for name in bug.columns)
        order = np.arange(len(recommender.feature_names))
        order[[a, b]] = order[[b, a]]
        swapped = recommender.with_ranker(recommender.ranker)
        swapped.features = lambda *given: np.ascontiguousarray(recommender.features(*given)[:, :, order])  # type: ignore[method-assign]
        return swapped


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles: RIGHT, and OTHER with retrievers of another time. Some users rate more after training."""
    root = tmp_path_factory.mktemp("home")
    home = Workspace(root).dataset("planted")
    save_tables(planted_tables(), home.data)
    Workspace(root).remember("planted")
    planted_bundle(home.bundles / RIGHT)
    parts = (planted_catalogue(), planted_retrievers(planted_split().t1), *planted_rankers(), RECOMMENDER)
    save_bundle(home.bundles / OTHER, planted_facts(OTHER), *parts, planted_probabilities())
    world = Monitored(root)
    for n, user_id in enumerate(USERS[:20]):
        world.event(user_id, world.unseen(user_id, END, n % 5), END + 40.0 + n, 0.5 + n % 10 / 2)
    world.table.close()
    return root


@pytest.fixture
def world(built: Path, tmp_path: Path) -> Monitored:
    """A home of each test's own; its folder has a name that a pattern of file names would read otherwise."""
    return Monitored(Path(shutil.copytree(built, tmp_path / "home [1]")))


def moments(after: float = 0.0) -> list[tuple[int, float]]:
    """Every user, some seconds apart, so long after the item statistics have come to rest."""
    return [(user_id, SERVED_DAY * DAY + 3_600 + after + 7 * n) for n, user_id in enumerate(USERS)]
