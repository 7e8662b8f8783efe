"""A small world with known answers, shared by tests: tables, fitted parts, a bundle.

Items of even rows are the taste of users of even rows, odd of odd; nobody crosses. Everything is built once a
process and must not be changed by a test.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recsys.bundle import Bundle, BundleFacts, load_bundle, save_bundle
from recsys.columns import (
    AGE,
    COVISITATION,
    EASE,
    GENDER,
    GENRES,
    IALS,
    ITEM_ID,
    ITEM_KNN,
    OCCUPATION,
    POPULARITY,
    RATING,
    RETRIEVERS,
    TIMESTAMP,
    TITLE,
    TWO_TOWER,
    USER_ID,
    YEAR,
)
from recsys.data.split import Split, split_by_time
from recsys.data.tables import DatasetInfo, Tables
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import Event, UserState, fold
from recsys.ranking.calibration import Probabilities
from recsys.ranking.calibration_training import fit_probabilities
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.ranking.training import RankerSettings, TrainingTable, fit_boosted, fit_early, fit_logistic
from recsys.recommender import Recommender, RecommenderSettings
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.retrievers import KnownEvents, fit_retriever
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from recsys.retrieval.two_tower_training import TowerSettings, Trainer
from recsys.training_table import build_training_table, retrieve_contexts

DAY = 86_400
START = 11_000 * DAY  # midnight UTC
N_ITEMS, N_RATED, N_USERS, EVENTS_A_USER = 40, 36, 60, 12
NAMELESS, TWINS = 38, {36: 0, 37: 1}  # row numbers: an item without content; unrated item -> the one it resembles
SILENT_USER = 999  # in the users table, without events
TOWER = TowerSettings(
    dim=16, layers=1, max_length=16, dropout=0.1, id_dropout=0.2, epochs=12, batch_events=80, learning_rate=1e-2
)
FITS: dict[str, dict[str, Any]] = {
    EASE: {"regularisation": 5.0, "power": 0.5},
    IALS: {"dim": 2, "regularisation": 1.0, "alpha": 5.0, "iterations": 10, "power": 0.5},
    ITEM_KNN: {"shrinkage": 1.0, "neighbours": 12, "power": 0.5},
    COVISITATION: {"decay": 0.8, "damping": 0.5, "history_decay": 0.8},
    POPULARITY: {"half_life_days": 30.0},
}
RANKER = RankerSettings(max_trees=20, learning_rate=0.1, min_rows_in_leaf=5, early_stopping=10, negatives=10, threads=1)
RECOMMENDER = RecommenderSettings(fetch=15, keep=25, rank=15)


@lru_cache
def planted_tables() -> Tables:
    """720 events of 60 users and 40 items; the last tenth of the events has warm and cold users."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(N_USERS):
        items = user % 2 + 2 * rng.permutation(N_RATED // 2)[:EVENTS_A_USER]
        gaps = rng.choice([0, 40, 7_200, DAY, 3 * DAY], EVENTS_A_USER, p=[0.15, 0.25, 0.2, 0.2, 0.2])
        times = START + user * DAY * 4 // 5 + int(rng.integers(DAY)) + np.cumsum(gaps)
        stars = rng.integers(4, 11, EVENTS_A_USER) / 2
        rows += [(2 * user + 101, 3 * m + 5, s, t) for m, s, t in zip(items, stars, times, strict=True)]
    events = pd.DataFrame(rows, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP]).astype({RATING: np.float32})
    events = events.sort_values([TIMESTAMP, USER_ID, ITEM_ID], ignore_index=True)
    info = DatasetInfo("planted", True, "ml-latest", "0" * 64, len(events), N_ITEMS, N_USERS + 1)
    return Tables(events, _items(), _users(), info)


def _items() -> pd.DataFrame:
    titles, years, genres = [], [], []
    for row in range(N_ITEMS):
        like = TWINS.get(row, row)
        year = None if row == 34 else 1940 + 10 * (like // 2 // 3 % 6)
        word = ("Red", "Green", "Blue")[like // 2 % 3]
        titles.append(f"{word} {('Storm', 'Garden')[like % 2]}" + (f" ({year})" if year else ""))
        years.append(year)
        genres.append([("Action", "Comedy")[like % 2], *(["Drama"] if like % 5 == 0 else [])])
    titles[NAMELESS], years[NAMELESS], genres[NAMELESS] = "Unheard", None, []
    ids = 3 * np.arange(N_ITEMS) + 5
    return pd.DataFrame({ITEM_ID: ids, TITLE: titles, YEAR: pd.array(years, dtype="Int32"), GENRES: genres})


def _users() -> pd.DataFrame:
    rows = range(N_USERS)
    return pd.DataFrame(
        {
            USER_ID: [*(2 * u + 101 for u in rows), SILENT_USER],
            GENDER: [*(("F", "M", None)[u % 3] for u in rows), "F"],
            AGE: pd.array([*((18, 35, None, 56)[u % 4] for u in rows), 25], dtype="Int32"),
            OCCUPATION: [*(("artist", None, "doctor")[u % 3] for u in rows), "artist"],
        }
    )


@lru_cache
def planted_catalogue() -> Catalogue:
    return Catalogue.from_tables(planted_tables().items, planted_tables().users)


@lru_cache
def planted_histories() -> Histories:
    return Histories.from_tables(planted_catalogue(), planted_tables().events, planted_tables().users)


@lru_cache
def planted_timeline() -> ItemStatsTimeline:
    return ItemStatsTimeline(planted_catalogue(), snapshots(planted_tables().events))


@lru_cache
def planted_split() -> Split:
    return split_by_time(planted_tables().events[TIMESTAMP].to_numpy())


@lru_cache
def planted_retrievers(cutoff: int | None = None) -> tuple[Retriever, ...]:
    """All retrievers fitted on events with timestamp <= cutoff (default: all), in the order of `columns.RETRIEVERS`."""
    cutoff = planted_split().end if cutoff is None else cutoff
    known = KnownEvents.through(planted_histories(), N_ITEMS, cutoff)
    towers = TwoTowerRetriever.from_model(Trainer(planted_catalogue(), planted_histories(), cutoff, TOWER).fit())
    return tuple(towers if name == TWO_TOWER else fit_retriever(name, known, FITS[name]) for name in RETRIEVERS)


@lru_cache
def planted_retriever(name: str) -> Retriever:
    """The named retriever, fitted on all events."""
    return planted_retrievers()[RETRIEVERS.index(name)]


@lru_cache
def planted_training_table() -> TrainingTable:
    """Retrievers fitted through T1, contexts of (T1, T2]."""
    split, events = planted_split(), planted_tables().events
    contexts = PredictionPoints.from_events(events[(events[TIMESTAMP] > split.t1) & (events[TIMESTAMP] <= split.t2)])
    states = planted_histories().states_at(contexts.user_id, contexts.timestamp)
    recommender = Recommender(planted_catalogue(), planted_retrievers(split.t1), None, RECOMMENDER)
    retrieved = retrieve_contexts(recommender, contexts, states)
    return build_training_table(
        recommender,
        contexts,
        states,
        retrieved,
        planted_timeline().as_of,
        negatives=RANKER.negatives,
        unsampled_candidates=len(contexts),
    )


@lru_cache
def planted_rankers() -> tuple[BoostedRanker, LogisticRanker]:
    return fit_boosted(planted_training_table(), RANKER), fit_logistic(planted_training_table())


@lru_cache
def planted_probabilities() -> Probabilities:
    table = planted_training_table()
    return fit_probabilities(table, RANKER, fit_early(table, RANKER))[0]


@lru_cache
def planted_recommender() -> Recommender:
    """Retrievers through T2, the ranker from the window before: frozen at T2, as for replay."""
    (ranker, _), retrievers = planted_rankers(), planted_retrievers(planted_split().t2)
    return Recommender(planted_catalogue(), retrievers, ranker, RECOMMENDER, planted_probabilities())


def planted_facts(bundle_id: str = "planted-1", role: str = "evaluation") -> BundleFacts:
    return BundleFacts(
        bundle_id=bundle_id,
        dataset=planted_tables().info,
        trained_through=planted_split().t2,
        role=role,
        sibling_id=None,
        code_version="0.1.0",
        created_utc="2001-01-01T00:00:00+00:00",
        parameters={"ranker": {"max_trees": RANKER.max_trees}},
    )


def planted_bundle(folder: Path, facts: BundleFacts | None = None) -> Bundle:
    """Save the planted recommender into `folder` and load it back."""
    recommender, (ranker, logistic) = planted_recommender(), planted_rankers()
    retrievers: tuple[Retriever, ...] = recommender.retrievers
    save_bundle(
        folder,
        facts or planted_facts(),
        recommender.catalogue,
        retrievers,
        ranker,
        logistic,
        RECOMMENDER,
        planted_probabilities(),
    )
    return load_bundle(folder)


def folded(histories: Histories, user_id: int) -> UserState:
    """The newest state of a user, event by event."""
    row = int(histories.user_idx([user_id])[0])
    part = slice(histories.offset[row], histories.offset[row + 1])
    columns = (histories.item_ids[part], histories.ratings[part], histories.timestamps[part])
    events = map(Event, *(column.tolist() for column in columns))
    profile = histories.users.reindex([user_id]).fillna({GENDER: "", AGE: 0, OCCUPATION: ""}).iloc[0]
    cold = UserState(user_id, gender=profile[GENDER], age=int(profile[AGE]), occupation=profile[OCCUPATION])
    return fold(cold, events)
