"""The replay against plain Python, one event at a time; the dump; and what may not change an answer."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.bundle import Bundle
from recsys.columns import ITEM_ID, RANK, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.evaluation import replay as module
from recsys.evaluation.cohorts import GAP_S, N_HISTORY, NEW_USER, RATERS
from recsys.evaluation.leaderboard import Replayed, build_leaderboard
from recsys.evaluation.metrics import event_values
from recsys.evaluation.replay import FULL_SYSTEM, LOGISTIC, MERGED, replay
from recsys.evaluation.replay import test_events as events_after
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.features.state import Event, UserState, fold, state_batch
from recsys.recommender import Recommendations, RequestContext
from tests import planted
from tests.evaluation.replay_world import DAY, events, frame_of, histories, replayed, window

HALF_LIFE_DAYS = 30.0
Row = tuple[int, int, float, int]  # user, item, stars, moment
Observed = list[tuple[int, float, list[int]]]  # item, stars, what was shown


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return planted.planted_bundle(tmp_path_factory.mktemp("replay") / "planted-1")


@pytest.fixture(scope="module")
def observed() -> Observed:
    """What the observer of `ranks` was called with, event by event."""
    return []


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `ranks` writes its lists."""
    return tmp_path_factory.mktemp("dump") / "new" / "dump.parquet"


@pytest.fixture(scope="module")
def ranks(bundle: Bundle, dump: Path, observed: Observed) -> Replayed:
    def observe(full: Recommendations, row: np.ndarray, item_id: np.ndarray, rating: np.ndarray) -> None:
        for r, item, stars in zip(row, item_id, rating, strict=True):
            observed.append((int(item), float(stars), [i for i in full.item_ids[r].tolist() if i >= 0]))

    return replayed(bundle, dump=dump, observe=observe)


@pytest.fixture
def dumped(ranks: Replayed, dump: Path) -> list[dict[str, Any]]:
    assert ranks.methods
    return list(pq.read_table(dump).to_pylist())


# ---- the oracle: lists of plain rows, nothing shared with the code under test but the models themselves


def rows() -> list[Row]:
    return [(u, i, r, t) for u, i, r, t in events()[[USER_ID, ITEM_ID, RATING, TIMESTAMP]].itertuples(index=False)]


def history_of(user: int, moment: int) -> list[Row]:
    """Strictly before the moment, oldest first."""
    return sorted((r for r in rows() if r[0] == user and r[3] < moment), key=lambda r: (r[3], r[1]))


def rank_in(order: list[int], item: int) -> int:
    return order.index(item) + 1 if item in order else 0


def popularity_order(user: int, moment: int) -> list[int]:
    """Decayed counts as of T2 by hand; an item never rated has no place."""
    t2 = planted.planted_split().t2
    score: dict[int, float] = defaultdict(float)
    for _, item, _, at in sorted(rows(), key=lambda r: (r[0], r[3], r[1])):
        if at <= t2:
            score[item] += 2 ** (-((t2 - at) / DAY) / HALF_LIFE_DAYS) + 1e-3
    seen = {item for _, item, _, _ in history_of(user, moment)}
    return sorted((m for m in score if m not in seen), key=lambda m: (-float(np.float32(score[m])), m))


def single_answer(bundle: Bundle, user: int, moment: int, k: int) -> list[int]:
    """`Recommender.recommend` for one user alone, from a state folded event by event."""
    catalogue = bundle.recommender.catalogue
    users = planted.planted_tables().users.set_index(USER_ID)
    state = UserState(user)
    if user in users.index:
        person = users.loc[user]
        age = 0 if pd.isna(person["age"]) else int(person["age"])
        state = UserState(user, gender=person["gender"] or "", age=age, occupation=person["occupation"] or "")
    for _, item, stars, at in history_of(user, moment):
        state = fold(state, [Event(item, stars, at)])
    day = moment // DAY
    stats = ItemStatsTimeline(catalogue, snapshots(events()[events()[TIMESTAMP] < day * DAY])).as_of(day)
    answer = bundle.recommender.recommend(state_batch(catalogue, [state], moment), RequestContext(stats), k)
    return [int(i) for i in answer.item_ids[0] if i >= 0]


def test_the_window_holds_what_the_tests_below_are_about() -> None:
    frame = window()
    together = frame.groupby([USER_ID, TIMESTAMP]).size()
    assert len(frame) == (events()[TIMESTAMP] > planted.planted_split().t2).sum() == 75
    assert (together > 1).sum() >= 5, "events of one second"
    assert sum(not history_of(u, t) for u, t in zip(frame[USER_ID], frame[TIMESTAMP], strict=True)) == 3, "cold"
    with pytest.raises(DataError, match="no event after T2"):
        events_after(events(), planted.planted_split().end)


def test_popularity_ranks_are_those_of_plain_python(ranks: Replayed) -> None:
    frame = frame_of(ranks, "popularity")
    keys = zip(frame[USER_ID], frame[TIMESTAMP], frame[ITEM_ID], strict=True)
    expected = [rank_in(popularity_order(u, t), i) for u, t, i in keys]
    assert frame[RANK].tolist() == expected
    leaderboard = build_leaderboard(ranks, planted.planted_tables().info, 0, planted.planted_split().t2)
    measured: Any = leaderboard.method("popularity").overall
    assert measured["mrr"].mean == pytest.approx(sum(1 / r for r in expected if r) / len(expected), abs=1e-12)


def test_the_full_system_is_the_one_recommend_path(
    bundle: Bundle, ranks: Replayed, dumped: list[dict[str, Any]]
) -> None:
    """Batches of many users, replayed, against one call a context: ranks of every event, and the whole lists."""
    single = {key: single_answer(bundle, *key, 500) for key in {(r[USER_ID], r[TIMESTAMP]) for r in dumped}}
    assert all(r["ranked"] == single[r[USER_ID], r[TIMESTAMP]] for r in dumped)
    frame = frame_of(ranks, FULL_SYSTEM)
    keys = zip(frame[USER_ID], frame[TIMESTAMP], strict=True)
    expected = [rank_in(single[key], i) for key, i in zip(keys, frame[ITEM_ID], strict=True)]
    assert frame[RANK].tolist() == expected
    assert all(r > 0 for r in expected), "the whole catalogue outside the history is ranked"


def test_every_retriever_alone_answers_as_when_called_directly(bundle: Bundle, ranks: Replayed) -> None:
    frame = window()
    states = histories().states_at(frame[USER_ID].to_numpy(), frame[TIMESTAMP].to_numpy())
    for retriever in bundle.recommender.retrievers:
        expected = []
        for row in range(len(frame)):
            one = states.rows(np.array([row]))
            scores = retriever.answer(one).at(np.arange(planted.N_ITEMS)[None, :])[0].tolist()
            unseen = sorted(set(range(planted.N_ITEMS)) - set(one.seen_idx[0].tolist()))
            scored = [i for i in unseen if scores[i] != 0 or retriever.name == "two_tower"]
            order = np.array(sorted(scored, key=lambda i: (-scores[i], i)), dtype=np.int64)
            expected.append(rank_in(bundle.recommender.catalogue.to_ids(order).tolist(), int(frame[ITEM_ID].iloc[row])))
        assert ranks.ranks(retriever.name).tolist() == expected, retriever.name


def test_frames_carry_every_event_once_with_its_facts(ranks: Replayed) -> None:
    singles = ["popularity", "covisitation", "item_knn", "ials", "ease", "two_tower"]
    systems = [MERGED, LOGISTIC, FULL_SYSTEM]
    assert [(m.name, m.kind) for m in ranks.methods] == [
        *((name, "single") for name in singles),
        *((name, "system") for name in systems),
    ]
    frame = window().reset_index(drop=True)
    t2 = planted.planted_split().t2
    trained = {(user, item) for user, item, _, at in rows() if at <= t2}
    pasts = [history_of(u, t) for u, t in zip(frame[USER_ID], frame[TIMESTAMP], strict=True)]
    facts = {
        N_HISTORY: [len(past) for past in pasts],
        GAP_S: [t - past[-1][3] if past else -1 for past, t in zip(pasts, frame[TIMESTAMP], strict=True)],
        NEW_USER: [u not in {user for user, _ in trained} for u in frame[USER_ID]],
        RATERS: [sum(item == i for _, item in trained) for i in frame[ITEM_ID]],
        **{column: frame[column].tolist() for column in (USER_ID, TIMESTAMP, ITEM_ID, RATING)},
    }
    assert {column: ranks.events[column].tolist() for column in facts} == facts
    assert ranks.n_catalogue == planted.N_ITEMS


def test_no_method_falls_behind_what_it_was(ranks: Replayed) -> None:
    """Measured with the planted world's seeds, the same on one thread and on two: NDCG@10 of all 75 events. Within its
    cluster a user's next item is a matter of chance, hence all but popularity lie close together. What only counts is
    exact; where floats decide, about one event may change places on another machine (at most 0.37 / 75 each)."""
    measured = {method.name: event_values(method.ranks, ["ndcg@10"]).mean() for method in ranks.methods}
    counted = {"popularity": 0.151599, "covisitation": 0.415427, "item_knn": 0.429515}
    fitted = {"ials": 0.4319, "ease": 0.4266, "two_tower": 0.4243}
    system = {MERGED: 0.4232, LOGISTIC: 0.4238, FULL_SYSTEM: 0.4096}
    assert {name: measured[name] for name in counted} == pytest.approx(counted, abs=1e-6)
    assert {name: measured[name] for name in fitted | system} == pytest.approx(fitted | system, abs=0.006)


def test_beyond_accuracy_of_the_lists_that_were_shown(ranks: Replayed, dumped: list[dict[str, Any]]) -> None:
    """Popularity's top tens by hand and the full system's from the dump, each context once."""
    contexts = {(r[USER_ID], r[TIMESTAMP]): r["ranked"][:10] for r in dumped}
    lists = {FULL_SYSTEM: contexts, "popularity": {key: popularity_order(*key)[:10] for key in contexts}}
    trained = {(user, item) for user, item, _, at in rows() if at <= planted.planted_split().t2}
    n_users = len({user for user, _ in trained})
    raters = {i: sum(item == i for _, item in trained) for i in planted.planted_tables().items[ITEM_ID]}
    for name, by_context in lists.items():
        flat = [i for ranked in by_context.values() for i in ranked]
        bits = [math.log2((n_users + 1) / (raters[i] + 1)) for i in flat]
        beyond = next(method.beyond for method in ranks.methods if method.name == name)
        assert beyond.coverage == len(set(flat)) / len(raters)
        assert beyond.novelty == pytest.approx(sum(bits) / len(flat))


def test_the_dump_and_the_observer_get_every_event_once_with_what_was_answered(
    dump: Path, dumped: list[dict[str, Any]], observed: Observed
) -> None:
    ids = [(name, pa.int64()) for name in ("user_id", "timestamp", "item_id")]
    assert pq.read_table(dump).schema.equals(pa.schema([*ids, ("ranked", pa.list_(pa.int64()))]))
    assert [p.name for p in dump.parent.iterdir()] == ["dump.parquet"]
    assert [(item, ranked) for item, _, ranked in observed] == [(r[ITEM_ID], r["ranked"]) for r in dumped]
    assert sorted((i, s) for i, s, _ in observed) == sorted(zip(window()[ITEM_ID], window()[RATING], strict=True))
    catalogue = set(planted.planted_tables().items[ITEM_ID].tolist())
    for row in dumped:
        seen = {item for _, item, _, _ in history_of(row["user_id"], row["timestamp"])}
        assert len(row["ranked"]) == len(set(row["ranked"]))
        assert set(row["ranked"]) == catalogue - seen


def test_a_list_ends_at_its_length_and_progress_counts_contexts_up_to_all(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIST_LENGTH", 7)
    steps: list[tuple[int, int]] = []
    progress = lambda done, of: steps.append((done, of))  # noqa: E731
    short = replayed(bundle, dump=tmp_path / "dump.parquet", leaderboard=False, progress=progress)
    assert {len(r) for r in pq.read_table(tmp_path / "dump.parquet").to_pydict()["ranked"]} == {7}
    (method,) = short.methods
    assert (method.name, method.ranks.min(), method.ranks.max()) == (FULL_SYSTEM, 0, 7)
    n_contexts = len(set(zip(window()[USER_ID], window()[TIMESTAMP], strict=True)))
    assert steps[-1] == (n_contexts, n_contexts)
    assert steps == sorted(steps)


def test_a_failure_leaves_no_dump_and_the_old_one_as_it_was(bundle: Bundle, tmp_path: Path) -> None:
    def fails(done: int, of: int) -> None:
        if done > of // 2:
            raise RuntimeError("the lights went out")

    (tmp_path / "old.parquet").write_bytes(b"old")
    for name in ("new.parquet", "old.parquet"):
        with pytest.raises(RuntimeError, match="lights"):
            replayed(bundle, dump=tmp_path / name, leaderboard=False, progress=fails)
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_the_order_of_the_events_does_not_matter(bundle: Bundle, ranks: Replayed) -> None:
    shuffled = window().sample(frac=1.0, random_state=5)
    again = replay(bundle, histories(), snapshots(events()), shuffled)
    columns = [RANK, N_HISTORY, GAP_S]
    for method in again.methods:
        one, other = (frame_of(r, method.name).set_index([USER_ID, ITEM_ID])[columns] for r in (again, ranks))
        pd.testing.assert_frame_equal(one.sort_index(), other.sort_index())
    assert again.events[RATING].tolist() == shuffled[RATING].tolist()
