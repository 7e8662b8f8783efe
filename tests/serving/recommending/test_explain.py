"""Explanations: each number and each reason is checked against a plain computation of the same thing."""

from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest

from recsys.features.state import StateBatch, UserState, state_batch
from recsys.ranking.ranker import BoostedRanker
from recsys.recommender import Recommendations, Recommender, RequestContext
from recsys.retrieval.item_tables import Covisitation
from serving.model_lifecycle.served_model import ServedModel
from serving.recommending import answers, explain
from serving.recommending.service import Service
from tests.serving.serving_client import recommendations
from tests.serving.serving_world import ServingWorld

USERS = (1, 2, 7, 8, 19, 24, 33, 42, 51, 60)
STRANGER = 987_654


def get(client: httpx.Client, user_id: int = 7, **more: object) -> dict[str, Any]:
    return recommendations(client, user_id, **{"k": 20, "explain": True, **more})


def library(
    service: Service, world: ServingWorld, user_id: int = 7, diversity: float = 0.0
) -> tuple[StateBatch, Recommendations]:
    model = service.champion.model
    states = state_batch(model.catalogue, [world.states.get(user_id, UserState(user_id))], world.end + 86_400)
    return states, model.recommender.recommend(states, RequestContext(model.stats), 20, None, diversity)


def broken(*_: object) -> None:
    raise RuntimeError("planted")


@pytest.mark.parametrize("diversity", [0.0, 0.7])
def test_places_and_contributions_are_those_of_the_library(
    client: httpx.Client, service: Service, world: ServingWorld, diversity: float
) -> None:
    recommender = service.champion.model.recommender
    names = recommender.feature_names
    assert recommender.ranker is not None
    for user_id in USERS:
        body = get(client, user_id, diversity=diversity)
        assert body["degraded"] == []
        assert "explain" in body["timings_ms"]
        _, best = library(service, world, user_id, diversity)
        assert best.features is not None
        scores = recommender.ranked_scores(best.candidates, best.features, recommender.ranker)[0].tolist()
        order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
        for item, at in zip(body["items"], best.position[0].tolist(), strict=True):
            explained = item["explanation"]
            ranks = zip(best.candidates.retriever_names, best.candidates.retriever_ranks[0, at].tolist(), strict=True)
            by_rank = sorted(((name, rank) for name, rank in ranks if rank), key=lambda one: one[1])
            assert [(one["retriever"], one["rank"]) for one in explained["found_by"]] == by_rank
            assert (explained["merged_rank"], explained["ranked_rank"]) == (at + 1, order.index(at) + 1)
            own = [part["contribution"] for part in explained["contributions"]]
            total = sum(own) + explained["other_contributions"] + explained["bias"]
            assert total == pytest.approx(scores[at], abs=1e-4)
            assert 0 < len(own) <= explain.MOST_CONTRIBUTIONS
            assert [abs(x) for x in own] == sorted((abs(x) for x in own), reverse=True)
            for part in explained["contributions"]:
                value = float(best.features[0, at, names.index(part["feature"])])
                assert part["value"] == (None if np.isnan(value) else round(value, 6))
                assert part["group"] == explain.group_of(part["feature"])


def reasons_by_hand(model: ServedModel, states: StateBatch, best: Recommendations, place: int) -> list[tuple[str, Any]]:
    """(kind, item of the history, words that the text must hold), from the definitions alone."""
    at = int(best.position[0, place])
    item = int(best.candidates.item_idx[0, at])
    catalogue, unit = model.catalogue, model.recommender.unit_vectors
    history = [int(i) for i in states.item_idx[0] if i >= 0]
    stars = states.ratings[0, -len(history) :].tolist() if history else []
    pairs = [float(unit[i] @ unit[j]) for i in range(len(catalogue)) for j in range(i)]
    out: list[tuple[str, Any]] = []

    cosines = [(float(unit[item] @ unit[i]), i, s) for i, s in zip(history, stars, strict=True) if s >= 4]
    if cosines:
        cosine, closest, given = max(cosines, key=lambda one: one[0])
        if cosine >= np.quantile(np.array(pairs, dtype=np.float32), 0.95) - 1e-6:
            out.append(("similar", (closest, f"Because you rated {catalogue.titles[closest]} {given:g} stars")))

    table = next(s for s in model.recommender.retrievers if isinstance(s, Covisitation))
    recent = history[-5:]
    after = [float(table.after(np.array([i]), np.array([[item]]))[0, 0]) for i in recent]
    if recent and max(after) > 0:
        before = recent[after.index(max(after))]
        out.append(("watched_after", (before, catalogue.titles[before])))

    counts = {g: sum(g in catalogue.genres_of(i) for i in history) for g in catalogue.genres_of(item)}
    if len(history) >= 5 and counts and 3 * max(counts.values()) >= len(history):
        out.append(("genre", (None, f"{max(counts.values())} of your last {len(history)}")))

    lately = model.stats.decayed[:, 1]
    if lately[item] > 0 and lately[item] >= np.quantile(lately, 0.95):
        out.append(("popular", (None, "weeks before 2002-11-29")))
    return out[:3]


def test_reasons_are_true_and_none_is_missing(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    kinds: dict[int, set[str]] = {}
    model = service.champion.model
    for user_id in (*USERS, STRANGER):
        states, best = library(service, world, user_id)
        for place, item in enumerate(get(client, user_id)["items"]):
            reasons = item["explanation"]["reasons"]
            expected = reasons_by_hand(model, states, best, place)
            assert [reason["kind"] for reason in reasons] == [kind for kind, _ in expected]
            for reason, (kind, (about, words)) in zip(reasons, expected, strict=True):
                assert words in reason["text"], kind
                assert reason["item_id"] == (None if about is None else int(model.catalogue.item_ids[about]))
            kinds.setdefault(user_id, set()).update(reason["kind"] for reason in reasons)
    assert set().union(*kinds.values()) == {"similar", "watched_after", "genre", "popular"}
    assert kinds[STRANGER] <= {"popular"}


def test_items_below_what_is_ranked_have_no_contributions(client: httpx.Client, service: Service) -> None:
    depth = service.champion.model.recommender.settings.rank
    body = get(client, k=60)
    assert body["degraded"] == []
    for item in body["items"]:
        for name in ("contributions", "ranked_rank"):
            assert (item["explanation"][name] is not None) is (item["rank"] <= depth)


def test_contributions_of_the_best_items_come_first_and_end_with_the_time(
    service: Service, world: ServingWorld
) -> None:
    model = service.champion.model
    assert model.recommender.ranker is not None
    states, best = library(service, world)
    for n_times, done in ((0, 0), (1, explain.ROWS_AT_ONCE), (2, 20)):
        explanations = explain.explain(model, states, best, 20, False)
        looks = iter([True] * n_times + [False])
        complete = explain.add_contributions(model.recommender.ranker, best, explanations, partial(next, looks))
        assert complete is (n_times == 2)
        assert [one["contributions"] is not None for one in explanations] == [True] * done + [False] * (20 - done)


def test_what_cannot_be_explained_in_time_or_at_all_costs_no_answer(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in ((answers, "EXPLAIN_SHARE", 1e-9), (BoostedRanker, "contributions", broken)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            body = get(client)
        assert body["degraded"] == ["explain"]
        assert {item["explanation"]["contributions"] for item in body["items"]} == {None}
        assert any(item["explanation"]["reasons"] for item in body["items"])
        assert all(item["like_probability"] is not None for item in body["items"])
    monkeypatch.setattr(answers, "explain", broken)
    body = get(client)
    assert body["degraded"] == ["explain"]
    assert {item["explanation"] for item in body["items"]} == {None}
    assert service.metrics.as_dict()["degraded.explain"] == 3


def test_without_the_ranker_there_is_no_place_after_it(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoostedRanker, "score", broken)
    body = get(client, diversity=0.5)
    assert body["degraded"] == ["ranking", "explain"]
    assert {item["explanation"]["ranked_rank"] for item in body["items"]} == {None}
    monkeypatch.setattr(Recommender, "recommend", broken)
    body = get(client)
    assert body["degraded"] == ["ranking", "retrieval", "explain"]
    assert {item["explanation"] for item in body["items"]} == {None}


def test_items_without_any_genre_are_explained(service: Service, world: ServingWorld) -> None:
    model = service.champion.model
    states, best = library(service, world)
    bare = replace(model.catalogue, genre_names=(), genres=model.catalogue.genres[:, :0])

    class WithoutGenres(ServedModel):
        catalogue = bare  # type: ignore[assignment]

    explanations = explain.explain(WithoutGenres(**vars(model)), states, best, 20, False)
    kinds = {reason["kind"] for one in explanations for reason in one["reasons"]}
    assert kinds
    assert "genre" not in kinds
