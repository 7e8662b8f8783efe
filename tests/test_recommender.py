"""The one path from state to list."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.columns import COVISITATION, RETRIEVERS, TWO_TOWER
from recsys.errors import ConfigError
from recsys.features.item_stats import ItemStats
from recsys.features.state import StateBatch
from recsys.filters import Filters
from recsys.ranking.calibration import Platt, Probabilities, like_scores
from recsys.ranking.ranker import LogisticRanker
from recsys.recommender import Recommendations, Recommender, RecommenderSettings, RequestContext, order
from recsys.retrieval.merge import Candidates
from tests.planted import (
    DAY,
    N_ITEMS,
    RECOMMENDER,
    SILENT_USER,
    planted_catalogue,
    planted_histories,
    planted_recommender,
    planted_retrievers,
    planted_split,
    planted_tables,
    planted_timeline,
)

NOW = planted_split().t2 + 1
FILTERS = [
    Filters(),
    Filters(genres=("Drama", "Comedy")),
    Filters(year_from=1960),
    Filters(year_to=1960),
    Filters(exclude_ids=(5, 8, 11, 10**6)),
    Filters(min_ratings=9),
    Filters(year_from=3_000),  # nothing passes
    Filters(genres=("Action",), year_from=1950, exclude_ids=(11,), min_ratings=5),
]


def stats() -> ItemStats:
    return planted_timeline().as_of(NOW // DAY)


def context(budget_ms: float | None = None) -> RequestContext:
    return RequestContext(stats(), budget_ms)


def users() -> StateBatch:
    """All users, one of them without events, and a stranger."""
    return planted_histories().states_at(np.append(planted_histories().user_ids, 123_456), NOW)


def settings(**changes: int) -> RecommenderSettings:
    return replace(RECOMMENDER, **changes)  # type: ignore[arg-type]


def assert_contract(answer: Recommendations, states: StateBatch, k: int) -> None:
    assert answer.item_ids.shape == answer.scores.shape == answer.position.shape == (len(states), k)
    missing = answer.item_ids == -1
    np.testing.assert_array_equal(np.isneginf(answer.scores), missing)
    np.testing.assert_array_equal(answer.position == -1, missing)
    assert not (missing[:, :-1] & ~missing[:, 1:]).any()
    for b, seen in enumerate(states.seen_idx):
        shown = answer.item_ids[b][~missing[b]]
        assert len(set(shown)) == len(shown)
        assert not set(planted_catalogue().to_idx(shown)) & set(seen)
        assert (np.diff(answer.scores[b][~missing[b]]) <= 0).all()
        places = answer.position[b][~missing[b]]
        at = answer.candidates.item_idx[b, places]
        np.testing.assert_array_equal(planted_catalogue().to_ids(at), shown)


@pytest.mark.parametrize(("k", "ranked"), [(1, True), (25, True), (N_ITEMS + 5, True), (10, False)])
def test_answers_are_best_first_unseen_and_padded(k: int, ranked: bool) -> None:
    recommender = planted_recommender() if ranked else planted_recommender().with_ranker(None)
    states = users()
    answer = recommender.recommend(states, context(), k)
    assert_contract(answer, states, k)
    assert answer.degraded == ()
    unseen = N_ITEMS - np.array([len(s) for s in states.seen_idx])
    np.testing.assert_array_equal((answer.item_ids >= 0).sum(axis=1), np.minimum(unseen, k))


def test_the_order_of_an_answer_by_loops() -> None:
    """Ranked candidates by the ranker's score, ties in merged order; then the others in merged order."""
    recommender, states = planted_recommender(), users()
    answer = recommender.recommend(states, context(), 25)
    candidates = recommender.retrieve(states)
    features = recommender.features(states, candidates, stats())
    assert answer.features is not None
    np.testing.assert_array_equal(answer.features, features)
    assert features.shape == (len(states), RECOMMENDER.rank, len(recommender.feature_names))
    assert recommender.ranker is not None
    for b in range(len(states)):
        ids = [int(i) for i in planted_catalogue().to_ids(candidates.item_idx[b])]
        scores = recommender.ranker.score(features[b])
        depth = [j for j in range(RECOMMENDER.rank) if ids[j] >= 0]
        best = sorted(depth, key=lambda j: (-scores[j], j))
        tail = [j for j in range(RECOMMENDER.rank, 25) if ids[j] >= 0]
        expected = [ids[j] for j in [*best, *tail]]
        assert answer.item_ids[b, : len(expected)].tolist() == expected
        assert answer.position[b, : len(expected)].tolist() == [*best, *tail]
        np.testing.assert_allclose(answer.scores[b, : len(best)], scores[best], rtol=1e-5)
        lowest = scores[depth].min()
        np.testing.assert_allclose(
            answer.scores[b, len(best) : len(expected)], lowest - np.arange(1, len(tail) + 1), rtol=1e-5
        )


def test_probabilities_stand_beside_the_answers_they_are_of() -> None:
    """P(watch) from the softmax over all that the ranker saw, P(like) from the item's own row; same order."""
    recommender, states = planted_recommender(), users()
    fitted = recommender.probabilities
    assert fitted is not None
    answer = recommender.recommend(states, context(), 25)
    plain = Recommender(recommender.catalogue, recommender.retrievers, recommender.ranker, RECOMMENDER)
    np.testing.assert_array_equal(answer.item_ids, plain.recommend(states, context(), 25).item_ids)
    assert answer.features is not None
    assert answer.watch_probability.shape == answer.like_probability.shape == answer.item_ids.shape
    assert recommender.ranker is not None
    for b in range(len(states)):
        scores = recommender.ranker.score(answer.features[b]).astype(np.float64)
        present = answer.candidates.item_idx[b, : RECOMMENDER.rank] >= 0
        total = np.exp(scores[present] / fitted.temperature).sum()
        for place, position in enumerate(answer.position[b].tolist()):
            watch, like = answer.watch_probability[b, place], answer.like_probability[b, place]
            if not 0 <= position < RECOMMENDER.rank:
                assert np.isnan([watch, like]).all()
                continue
            share = scores[position] / fitted.temperature - np.log(total)
            assert watch == pytest.approx(float(fitted.watch_map(share)), rel=1e-4, abs=1e-6)
            row = answer.features[b, position][None]
            assert like == pytest.approx(float(fitted.like_map(like_scores(fitted.like_score, row))[0]), rel=1e-4)
    watch = answer.watch_probability[:, : RECOMMENDER.rank]
    assert not (np.diff(watch, axis=1) > 0).any(), "never falls as the score rises"
    known = ~np.isnan(watch)
    assert ((watch[known] >= 0) & (watch[known] <= 1)).all()


def test_without_a_ranker_the_merged_order_is_the_answer() -> None:
    recommender = Recommender(planted_catalogue(), planted_retrievers(), None, RECOMMENDER)
    answer = recommender.recommend(users(), context(), 12)
    merged = recommender.retrieve(users())
    np.testing.assert_array_equal(answer.item_ids, planted_catalogue().to_ids(merged.item_idx[:, :12]))
    np.testing.assert_array_equal(answer.scores, merged.rrf_score[:, :12])
    assert (answer.features, answer.degraded, list(answer.timings_ms)) == (None, (), ["retrieval", "ordering"])


@pytest.mark.parametrize("diversity", [0.0, 0.4])
def test_a_spent_budget_skips_ranking_and_says_so(diversity: float) -> None:
    answer = planted_recommender().recommend(users(), context(budget_ms=0.0), 12, diversity=diversity)
    unranked = planted_recommender().with_ranker(None).recommend(users(), context(), 12, diversity=diversity)
    assert (answer.features, answer.degraded) == (None, ("ranking",))
    np.testing.assert_array_equal(answer.item_ids, unranked.item_ids)
    assert list(answer.timings_ms) == ["retrieval", "ordering"]
    assert np.isnan(answer.watch_probability).all()
    assert np.isnan(answer.like_probability).all()


def test_a_batch_equals_its_rows_one_by_one() -> None:
    recommender, states = planted_recommender(), users()
    together = recommender.recommend(states, context(), 15)
    for b in range(len(states)):
        alone = recommender.recommend(states.rows(slice(b, b + 1)), context(), 15)
        np.testing.assert_array_equal(alone.item_ids[0], together.item_ids[b])
        np.testing.assert_allclose(alone.scores[0], together.scores[b], rtol=1e-5, atol=1e-6)


def passes(f: Filters, idx: int) -> bool:
    """What a filter says of one item, in plain words."""
    catalogue = planted_catalogue()
    year = float(catalogue.years[idx])
    return (
        (not f.genres or bool(set(f.genres) & set(catalogue.genres_of(idx))))
        and (f.year_from is None or year >= f.year_from)
        and (f.year_to is None or year <= f.year_to)
        and int(catalogue.item_ids[idx]) not in f.exclude_ids
        and float(stats().n_ratings[idx]) >= f.min_ratings
    )


@pytest.mark.parametrize("filters", FILTERS)
def test_only_what_passes_the_filter_is_returned_and_all_of_it(filters: Filters) -> None:
    states = users()
    answer = planted_recommender().recommend(states, context(), N_ITEMS, filters)
    assert_contract(answer, states, N_ITEMS)
    allowed = {i for i in range(N_ITEMS) if passes(filters, i)}
    assert len(allowed) < N_ITEMS or filters == Filters()
    for b, seen in enumerate(states.seen_idx):
        shown = planted_catalogue().to_idx(answer.item_ids[b][answer.item_ids[b] >= 0])
        assert set(shown.tolist()) == allowed - set(seen.tolist())


def test_a_filter_comes_before_the_cut_not_after_it() -> None:
    """One candidate kept and only item 5 allowed: it must be found, however low it stands."""
    recommender = Recommender(planted_catalogue(), planted_retrievers(), None, settings(fetch=1, keep=1, rank=1))
    others = tuple(int(i) for i in planted_catalogue().item_ids if i != 5)
    cold = planted_histories().states_at(np.array([SILENT_USER]), NOW)
    answer = recommender.recommend(cold, context(), 1, Filters(exclude_ids=others))
    assert answer.item_ids.tolist() == [[5]]


def test_an_unknown_genre_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown genre 'Jazz'; known are Action, Comedy, Drama"):
        planted_recommender().recommend(users(), context(), 3, Filters(genres=("Drama", "Jazz")))


def test_k_must_be_1_or_more() -> None:
    with pytest.raises(ConfigError, match="k must be at least 1, got 0"):
        planted_recommender().recommend(users(), context(), 0)


def test_more_answers_than_candidates_are_kept_reach_beyond_them() -> None:
    recommender = Recommender(planted_catalogue(), planted_retrievers(), None, settings(keep=5, rank=5))
    assert (recommender.recommend(users(), context(), 20).item_ids >= 0).all()
    assert recommender.retrieve(users()).item_idx.shape[1] == 5


@pytest.mark.parametrize("changes", [{"rank": 0}, {"rank": 26}, {"fetch": 0}])
def test_impossible_settings_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="need 1 <= rank <= keep and fetch >= 1"):
        settings(**changes)


@pytest.mark.parametrize(
    "names",
    [*((n,) for n in RETRIEVERS), *(tuple(n for n in RETRIEVERS if n != without) for without in RETRIEVERS)],
    ids="+".join,
)
def test_any_retriever_may_be_missing(names: tuple[str, ...]) -> None:
    """Answers stay full, and features are those of the whole recommender for the same candidates, but for what the
    missing retriever gave: similarity without the two-tower model, `covisitation_last` without co-visitation."""
    made = [s for s in planted_retrievers(planted_split().t2) if s.name in names]
    recommender = Recommender(planted_catalogue(), made, None, RECOMMENDER)
    whole, states = planted_recommender(), users()
    answer = recommender.recommend(states, context(), 10)
    assert_contract(answer, states, 10)
    assert (answer.item_ids >= 0).all()
    features = recommender.features(states, answer.candidates, stats())
    at = [RETRIEVERS.index(n) for n in names]
    scores, ranks = (np.zeros((*answer.candidates.item_idx.shape, len(RETRIEVERS)), dtype) for dtype in ("f4", "i4"))
    scores[:, :, at], ranks[:, :, at] = answer.candidates.retriever_scores, answer.candidates.retriever_ranks
    candidates = replace(answer.candidates, retriever_names=RETRIEVERS, retriever_scores=scores, retriever_ranks=ranks)
    expected = whole.features(states, candidates, stats())
    ours = ("score", "score_below_best", "rank")
    assert recommender.feature_names == tuple(
        n for n in whole.feature_names if n not in {f"{s}_{f}" for s in RETRIEVERS if s not in names for f in ours}
    )
    for column, name in enumerate(recommender.feature_names):
        theirs = expected[:, :, whole.feature_names.index(name)]
        if (name.startswith("similarity_") and TWO_TOWER not in names) or (
            name == "covisitation_last" and COVISITATION not in names
        ):
            assert theirs.any()
            theirs = np.zeros_like(theirs)
        np.testing.assert_array_equal(features[:, :, column], theirs, err_msg=name)


def test_what_was_trained_on_other_features_is_refused() -> None:
    recommender, one = planted_recommender(), np.ones(2, np.float32)
    ranker = LogisticRanker(("a", "b"), one, one, one, 0.0)
    probabilities = Probabilities(1.0, Platt(1.0, 0.0), ranker, Platt(1.0, 0.0))
    with pytest.raises(ConfigError, match="the probabilities were trained on other features"):
        Recommender(recommender.catalogue, recommender.retrievers, recommender.ranker, RECOMMENDER, probabilities)
    with pytest.raises(ConfigError, match="the ranker was trained on other features"):
        recommender.with_ranker(ranker)
    with pytest.raises(ConfigError, match="needs at least one retriever"):
        Recommender(recommender.catalogue, [], None, RECOMMENDER)


def test_the_future_of_the_events_changes_no_answer() -> None:
    """States as of a moment, with and without the events after it."""
    moment = (planted_split().t1 // DAY + 1) * DAY
    h, events = planted_histories(), planted_tables().events
    cut = type(h).from_tables(h.catalogue, events[events["timestamp"] < moment], h.users.reset_index())
    recommender = Recommender(planted_catalogue(), planted_retrievers(planted_split().t1), None, RECOMMENDER)
    first, second = (recommender.recommend(x.states_at(h.user_ids, moment), context(), 10) for x in (h, cut))
    np.testing.assert_array_equal(first.item_ids, second.item_ids)


def test_order_keeps_the_merged_order_in_ties() -> None:
    none = np.zeros((1, 4, 0), np.float32)
    candidates = Candidates((), np.array([[7, 3, 5, -1]]), np.zeros((1, 4), np.float32), none, none.astype(np.int32))
    item_idx, scores, position = order(candidates, np.array([[1.0, 2.0, 1.0, -np.inf]], np.float32), 4)
    assert item_idx.tolist() == [[3, 7, 5, -1]]
    assert scores.tolist() == [[2.0, 1.0, 1.0, -np.inf]]
    assert position.tolist() == [[1, 0, 2, -1]]
