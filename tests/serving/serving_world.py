"""A whole trained home, small: 60 users, 80 items, two tastes, a bundle and its champion in a registry. The models are
barely trained: quality is no subject here."""

from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pandas as pd

from recsys.bundle import BundleFacts, save_bundle
from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.data.tables import DatasetInfo, Tables, save_tables
from recsys.feature_store import FeatureStore, write_feature_tables
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.features.state import UserState
from recsys.ranking.calibration import Isotonic, Platt, Probabilities
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.recommender import Recommender, RecommenderSettings
from recsys.registry import Registry, model_name_for
from recsys.retrieval.ease import Ease
from recsys.retrieval.item_tables import Covisitation
from recsys.retrieval.popularity import Popularity
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from recsys.retrieval.two_tower_training import TowerSettings, Trainer
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace, Workspace
from serving.settings import ServiceSettings
from tests.planted import folded

DATASET = "tiny-world"
DAY = 86_400
T0 = 12_000 * DAY
USERS, ITEMS = 60, 80
NDCG = {"mean": 0.21, "low": 0.18, "high": 0.24}
SLOW_MACHINE_MS = 60_000.0  # a budget that no test overruns by accident


@dataclass(frozen=True)
class ServingWorld:
    """`end`: one second after the last event; `states`: the newest of every user; `timeline`: statistics of items."""

    events: pd.DataFrame
    states: dict[int, UserState]
    timeline: ItemStatsTimeline
    home: DatasetWorkspace
    settings: ServiceSettings
    bundle_id: str
    end: int

    def seen(self, user_id: int) -> set[int]:
        return set(self.events.loc[self.events[USER_ID] == user_id, ITEM_ID])


def build(folder: Path, feature_store: bool = True) -> ServingWorld:
    """`feature_store`: also fill the real one; tests with a store in memory need none."""
    home = Workspace(folder).dataset(DATASET)
    tables = _tables()
    save_tables(tables, home.data)
    Workspace(folder).remember(DATASET)
    catalogue = Catalogue.from_tables(tables.items, tables.users)
    histories = Histories.from_tables(catalogue, tables.events, tables.users)
    days = snapshots(tables.events)
    settings = Settings(home=folder)
    if feature_store:
        write_feature_tables(home, histories, days, pd.DataFrame({USER_ID: [], TIMESTAMP: []}, dtype=int))
        store = FeatureStore(settings.feature_store(home))
        store.apply()
        store.materialize()
        store.close()
    timeline = ItemStatsTimeline(catalogue, days)
    end = int(tables.events[TIMESTAMP].max()) + 1
    bundle_id = "tiny-production"
    facts = BundleFacts(
        bundle_id=bundle_id,
        dataset=tables.info,
        trained_through=end - 1,
        role="production",
        sibling_id="tiny-evaluation",
        code_version="test",
        created_utc="2026-11-20T00:00:00+00:00",
        metrics={"ndcg@10": NDCG},
    )
    retrievers = _retrievers(catalogue, histories, end)
    recommender = RecommenderSettings(fetch=40, keep=60, rank=40)
    ranker = _ranker(catalogue, histories, retrievers, recommender, timeline, end)
    names = ranker.feature_names
    flat = np.zeros(len(names), dtype=np.float32)
    save_bundle(
        folder / "made" / bundle_id,
        facts,
        catalogue,
        retrievers,
        ranker,
        LogisticRanker(names, flat, flat + 1, flat, 0.0),
        recommender,
        Probabilities(1.5, Isotonic((-8.0, 0.0), (0.01, 0.6)), _likes_popular(names), Platt(0.9, -0.2)),
    )
    registry = Registry(None, settings.paths().mlflow, model_name_for(DATASET))
    registry.promote(registry.register(folder / "made" / bundle_id).version)
    states = {user_id: folded(histories, user_id) for user_id in histories.user_ids.tolist()}
    return ServingWorld(
        tables.events,
        states,
        timeline,
        home,
        ServiceSettings.build(settings, home, budget_ms=SLOW_MACHINE_MS),
        bundle_id,
        end,
    )


def _tables() -> Tables:
    """Users with an even id prefer Drama (items 1 to 40), the others Comedy (41 to 80); a fifth strays."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(1, USERS + 1):
        own = np.arange(1, 41) if user % 2 == 0 else np.arange(41, 81)
        other = np.arange(41, 81) if user % 2 == 0 else np.arange(1, 41)
        items = np.concatenate([rng.choice(own, 12, replace=False), rng.choice(other, 3, replace=False)])
        times = T0 + np.sort(rng.integers(0, 20 * DAY, len(items)))
        rows += [
            (user, int(m), float(rng.integers(4, 11)) / 2, int(t))
            for m, t in zip(rng.permutation(items), times, strict=True)
        ]
    events = pd.DataFrame(rows, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP]).astype({RATING: np.float32})
    items_frame = pd.DataFrame(
        {
            ITEM_ID: np.arange(1, ITEMS + 1),
            TITLE: ['<b>Bold</b> & "Quoted" (1990)', *[f"Film {i} ({1950 + i % 60})" for i in range(2, ITEMS + 1)]],
            YEAR: pd.array([1990, None, *[1950 + i % 60 for i in range(3, ITEMS + 1)]], dtype="Int32"),
            GENRES: [["Drama"] if i <= 40 else ["Comedy", "Romance"] for i in range(1, ITEMS + 1)],
        }
    )
    users = pd.DataFrame(
        {
            USER_ID: np.arange(1, USERS + 1),
            GENDER: ["F", "M"] * (USERS // 2),
            AGE: pd.array([25] * USERS, dtype="Int32"),
            OCCUPATION: ["artist"] * USERS,
        }
    )
    info = DatasetInfo(DATASET, True, "ml-1m", "f" * 64, len(events), ITEMS, USERS)
    return Tables(events, items_frame, users, info)


def _retrievers(catalogue: Catalogue, histories: Histories, end: int) -> list[Retriever]:
    settings = TowerSettings(dim=16, layers=1, heads=2, epochs=1, batch_events=640)
    tower = TwoTowerRetriever.from_model(Trainer(catalogue, histories, end, settings).fit())
    owner = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offset))
    item_idx, times, n = histories.item_idx, histories.timestamps, len(catalogue)
    return [
        tower,
        Ease.fit(owner, item_idx, n, regularisation=50.0, power=0.5),
        Covisitation.fit(owner, item_idx, times, n, decay=0.8, damping=5.0, history_decay=0.5),
        Popularity.fit(item_idx, times, n, cutoff=end, half_life_days=30.0),
    ]


def _likes_popular(names: tuple[str, ...]) -> LogisticRanker:
    flat = np.zeros(len(names), dtype=np.float32)
    weights = flat.copy()
    weights[names.index("popularity_all")] = 1.0
    return LogisticRanker(names, flat, flat + 1, weights, -1.0)


def _ranker(
    catalogue: Catalogue,
    histories: Histories,
    retrievers: list[Retriever],
    settings: RecommenderSettings,
    timeline: ItemStatsTimeline,
    end: int,
) -> BoostedRanker:
    """Planted: a candidate is right where its genre has the user's taste."""
    path = Recommender(catalogue, retrievers, None, settings)
    states = histories.states_at(histories.user_ids, end)
    candidates = path.retrieve(states)
    features = path.features(states, candidates, timeline.as_of(timeline.last_day))
    shown = catalogue.to_ids(candidates.item_idx[:, : features.shape[1]])
    right = (shown <= 40) == (histories.user_ids % 2 == 0)[:, None]
    data = lgb.Dataset(
        features.reshape(-1, features.shape[2]),
        right.reshape(-1).astype(np.int32),
        group=[features.shape[1]] * len(states),
        feature_name=list(path.feature_names),
    )
    booster = lgb.train({"objective": "lambdarank", "num_leaves": 7, "num_threads": 1, "verbosity": -1}, data, 10)
    return BoostedRanker(booster)
