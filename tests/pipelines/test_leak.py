"""The future is planted, and nothing may move: retrievers, candidates, features, rankers, metrics, single answers.

Quantile cutoffs move with every added row, so each function gets the cutoffs of the plain world. The planted rows are
of old users and of new ones, before and after all others in the order of ids, and loud: one item rated by everybody.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines import features
from pipelines.config import PipelineConfig
from pipelines.pipeline import Pipeline
from pipelines.stages import stages
from pipelines.training_set import TrainingSet
from recsys.atomic_io import read_json
from recsys.bundle import Bundle, load_bundle, save_bundle
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.data.tables import Tables, save_tables
from recsys.evaluation.leaderboard import build_leaderboard
from recsys.evaluation.replay import FULL_SYSTEM, replay
from recsys.evaluation.replay import test_events as events_after
from recsys.features.histories import Histories
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.recommender import RequestContext
from recsys.retrieval.retrievers import load_retrievers
from recsys.settings import Settings
from recsys.workspace import Workspace
from tests import planted

DAY = planted.DAY
OLD = (101, 103, 105, 107, 161, 219)
NEW = (1, 2, 102, 50_000)
HIT = 5 + 3 * 35  # the item that the future loves; rated now and then before

CONFIG = PipelineConfig(
    tower=replace(planted.TOWER, epochs=4),
    retrievers=planted.FITS,
    ranker=planted.RANKER,
    recommender=planted.RECOMMENDER,
    latency_budget_ms=60_000.0,
)


def future(after: int) -> pd.DataFrame:
    """Loud events with timestamp > after: the first in the very next second, then on the same day, then for weeks."""
    rng = np.random.default_rng(11)
    items = planted.planted_tables().items[ITEM_ID].to_numpy()
    rows = []
    for user in (*OLD, *NEW):
        moments = after + 1 + np.sort(np.append(rng.integers(0, 30 * DAY, 18), [0, 0, 60]))
        chosen = np.append(rng.choice(items, 20, replace=False), HIT)
        rows += [(user, int(m), float(rng.integers(1, 11)) / 2, int(t)) for m, t in zip(chosen, moments, strict=True)]
    return pd.DataFrame(rows, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP])


def with_rows(added: pd.DataFrame) -> Tables:
    plain = planted.planted_tables()
    events = pd.concat([plain.events, added]).astype({RATING: np.float32})
    return replace(plain, events=events.sort_values([TIMESTAMP, USER_ID, ITEM_ID], ignore_index=True))


@lru_cache
def with_future(after: int) -> Tables:
    return with_rows(future(after))


def histories_of(tables: Tables) -> Histories:
    return Histories.from_tables(planted.planted_catalogue(), tables.events, tables.users)


def pipeline(folder: Path, tables: Tables) -> Pipeline:
    """A pipeline on these tables, with the cutoffs of the plain world."""
    data = TrainingSet(tables, tables.info, cutoffs=planted.planted_split())
    home = Workspace(folder).dataset("planted")
    save_tables(tables, home.data)
    return Pipeline(home, Settings(home=folder), CONFIG, data, report=lambda _: None)


def files_of(folder: Path) -> dict[str, object]:
    """Contents of every file; of a training's log, without its seconds."""
    files: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content: object = path.read_bytes()
        if path.name == "log.json":
            log = read_json(path)
            content = {**log, "tower": {**log["tower"], "seconds": None}}
        files[str(path.relative_to(folder))] = content
    return files


def fitted(folder: Path, tables: Tables, *names: str) -> Pipeline:
    """A pipeline of which the named stages have run, in the order of the list."""
    made = pipeline(folder, tables)
    for stage in stages(made):
        if stage.name in names:
            stage.run()
    made.close()
    return made


T1 = ("retrievers_t0", "retrievers_t1")
T2 = ("features", *T1, "ranker_t2", "retrievers_t2")
END = (*T2, "ranker_all", "retrievers_all")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return fitted(tmp_path_factory.mktemp("plain"), planted.planted_tables(), *END)


@pytest.mark.parametrize(("cutoff", "names"), [("t1", T1), ("t2", T2), ("end", END)])
def test_what_was_fitted_does_not_know_what_came_after(
    cutoff: str, names: tuple[str, ...], plain: Pipeline, tmp_path: Path
) -> None:
    """Every file of every retriever and ranker, byte by byte, with training tables through Feast's joins."""
    after = getattr(planted.planted_split(), cutoff)
    later = fitted(tmp_path, with_future(after), *names)
    for name in set(names) - {"features"}:
        expected = files_of(plain.home.work / name)
        assert len(expected) >= 3
        assert files_of(later.home.work / name) == expected, name


def test_rows_of_the_past_do_move_what_is_fitted(plain: Pipeline, tmp_path: Path) -> None:
    """The test above has teeth: the same rows before the cutoff change every retriever."""
    later = fitted(tmp_path, with_future(planted.planted_split().t1 - 31 * DAY), *T1)
    before, after = (files_of(made.home.work / "retrievers_t1") for made in (plain, later))
    moved = [name for name, content in after.items() if before[name] != content]
    for name in ("two_tower/towers", "two_tower/item_vectors", *(f"{name}/" for name in planted.FITS)):
        assert any(m.startswith(name) for m in moved), name


def test_states_and_statistics_of_the_online_store_are_the_only_ones_that_move(plain: Pipeline, tmp_path: Path) -> None:
    """Feast's past rows as of a window stay; what it serves online is newer."""
    split = planted.planted_split()
    later = fitted(tmp_path, with_future(split.t2), "features")
    contexts = features.ranker_contexts(plain.data, split.t1, split.t2, CONFIG.ranker)
    for made in (plain, later):
        assert len(made.store.historical_states(contexts.user_id, contexts.timestamp)) == len(contexts)
    before, after = (m.store.historical_states(contexts.user_id, contexts.timestamp) for m in (plain, later))
    assert before == after
    days = pd.DataFrame({ITEM_ID: [HIT] * 3, "day": [split.t1 // DAY, split.t2 // DAY - 1, split.t2 // DAY]})
    pd.testing.assert_frame_equal(plain.store.historical_item_stats(days), later.store.historical_item_stats(days))
    assert plain.store.online_states([OLD[0]]) != later.store.online_states([OLD[0]])
    plain.store.close()
    later.store.close()


@lru_cache
def window() -> pd.DataFrame:
    return events_after(planted.planted_tables().events, planted.planted_split().t2)


def bundle_of(made: Pipeline, folder: Path) -> Bundle:
    work = made.home.work
    save_bundle(
        folder,
        planted.planted_facts(folder.name),
        made.data.catalogue,
        load_retrievers(work / "retrievers_t2", made.data.catalogue),
        BoostedRanker.load(work / "ranker_t2"),
        LogisticRanker.load(work / "ranker_t2"),
        made.config.recommender,
    )
    return load_bundle(folder)


def test_no_metric_moves_with_events_after_the_last_test_event(plain: Pipeline, tmp_path: Path) -> None:
    split, info = planted.planted_split(), planted.planted_tables().info
    bundle = bundle_of(plain, tmp_path / "frozen")
    replayed = [
        replay(bundle, histories_of(tables), snapshots(tables.events), window())
        for tables in (planted.planted_tables(), with_future(split.end))
    ]
    for ours, theirs in zip(*(one.methods for one in replayed), strict=True):
        assert ours.ranks.tolist() == theirs.ranks.tolist()
    boards = [build_leaderboard(one, info, split.t1, split.t2, system=FULL_SYSTEM) for one in replayed]
    assert boards[0] == boards[1]


def test_events_at_t_or_later_do_not_change_the_prediction_at_t(plain: Pipeline, tmp_path: Path) -> None:
    """For a third of all test contexts: the user's own events at t and after, and everybody's on the day of t."""
    recommender = bundle_of(plain, tmp_path / "frozen").recommender
    contexts = PredictionPoints.from_events(window())
    moved_one_second_later = 0
    for row in range(0, len(contexts), 3):
        user, t = int(contexts.user_id[row]), int(contexts.timestamp[row])
        seen = planted.planted_tables().events.query("user_id == @user")[ITEM_ID].tolist()
        fresh = [m for m in planted.planted_tables().items[ITEM_ID].tolist() if m not in seen]
        own = [(user, fresh[0], 5.0, t), (user, fresh[1], 0.5, t), (user, fresh[2], 5.0, t + 1)]
        others = [(other, HIT, 5.0, t + i) for i, other in enumerate((*OLD, *NEW)) if other != user]
        added = pd.DataFrame(own + others, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP])

        def answer(tables: Tables, user: int, moment: int) -> tuple[list[int], list[float]]:
            states = histories_of(tables).states_at([user], [moment])
            stats = ItemStatsTimeline(recommender.catalogue, snapshots(tables.events)).as_of(moment // DAY)
            got = recommender.recommend(states, RequestContext(stats), planted.N_ITEMS)
            return got.item_ids[0].tolist(), got.scores[0].tolist()

        after = with_rows(added)
        assert answer(after, user, t) == answer(planted.planted_tables(), user, t)
        moved_one_second_later += answer(after, user, t + 1) != answer(planted.planted_tables(), user, t + 1)
    assert moved_one_second_later == len(range(0, len(contexts), 3)), "one second later the events at t are known"
