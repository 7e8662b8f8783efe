"""Explanations: each number and each reason is checked against a plain computation of the same thing."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest

from recsys.columns import COVISITATION
from recsys.features.state import StateBatch, UserState, state_batch
from recsys.ranking.ranker import BoostedRanker
from recsys.recommender import Recommendations, Recommender, RequestContext
from recsys.retrieval.covisitation import Covisitation
from serving.model_lifecycle.served_model import ServedModel
from serving.recommending import explain
from serving.recommending.options import RecommendationOptions, RequestTrace
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from serving.user_state.snapshots import UserSnapshot
from tests.serving.serving_world import ServingWorld

USERS = (1, 2, 7, 8, 19, 24, 33, 42, 51, 60)


def asked(client: httpx.Client, user_id: int, **more: object) -> dict[str, Any]:
    response = client.get(f"/v1/users/{user_id}/recommendations", params={"k": 20, "explain": True, **more})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def library(service: Service, user_id: int, now: int, diversity: float = 0.0) -> tuple[StateBatch, Recommendations]:
    model = service.champion.model
    state = service.store.online_state(user_id) or UserState(user_id)
    states = state_batch(model.catalogue, [state], now)
    return states, model.recommender.recommend(states, RequestContext(model.stats), 20, None, diversity)


@pytest.mark.parametrize("diversity", [0.0, 0.7])
def test_where_a_item_came_from_and_stood(
    client: httpx.Client, service: Service, world: ServingWorld, diversity: float
) -> None:
    for user_id in USERS:
        body = asked(client, user_id, diversity=diversity)
        _, found = library(service, user_id, world.end + 86_400, diversity)
        recommender = service.champion.model.recommender
        assert recommender.ranker is not None
        assert found.features is not None
        scores = recommender.ranked_scores(found.candidates, found.features, recommender.ranker)[0].tolist()
        order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
        for item, at in zip(body["items"], found.position[0].tolist(), strict=True):
            told = item["explanation"]
            ranks = dict(
                zip(found.candidates.retriever_names, found.candidates.retriever_ranks[0, at].tolist(), strict=True)
            )
            assert {one["retriever"]: one["rank"] for one in told["found_by"]} == {s: r for s, r in ranks.items() if r}
            assert [one["rank"] for one in told["found_by"]] == sorted(r for r in ranks.values() if r)
            assert (told["merged_rank"], told["ranked_rank"]) == (at + 1, order.index(at) + 1)
            if not diversity:
                assert told["ranked_rank"] == item["rank"]
        assert "explain" in body["timings_ms"]


def test_contributions_sum_to_the_score(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    names = service.champion.model.recommender.feature_names
    for user_id in USERS:
        body = asked(client, user_id)
        _, found = library(service, user_id, world.end + 86_400)
        assert found.features is not None
        assert body["degraded"] == []
        for item, at in zip(body["items"], found.position[0].tolist(), strict=True):
            told = item["explanation"]
            own = [part["contribution"] for part in told["contributions"]]
            assert sum(own) + told["other_contributions"] + told["bias"] == pytest.approx(item["score"], abs=1e-4)
            assert 0 < len(own) <= explain.MOST_CONTRIBUTIONS
            assert [abs(x) for x in own] == sorted((abs(x) for x in own), reverse=True)
            for part in told["contributions"]:
                value = float(found.features[0, at, names.index(part["feature"])])
                assert part["value"] == (None if np.isnan(value) else round(value, 6))
                assert part["group"] == explain.group_of(part["feature"])


def reasons_by_hand(
    model: ServedModel, states: StateBatch, found: Recommendations, place: int
) -> list[tuple[str, Any]]:
    """(kind, item of the history, words that the text must hold), from the definitions alone."""
    at = int(found.position[0, place])
    item = int(found.candidates.item_idx[0, at])
    catalogue, unit = model.catalogue, model.recommender.unit_vectors
    history = [int(i) for i in states.item_idx[0] if i >= 0]
    stars = states.ratings[0, -len(history) :].tolist() if history else []
    pairs = [float(unit[i] @ unit[j]) for i in range(len(catalogue)) for j in range(i)]
    out: list[tuple[str, Any]] = []

    cosines = [(float(unit[item] @ unit[i]), i, s) for i, s in zip(history, stars, strict=True) if s >= 4]
    if cosines:
        cosine, best, given = max(cosines, key=lambda one: one[0])
        if cosine >= np.quantile(np.array(pairs, dtype=np.float32), 0.95) - 1e-6:
            out.append(("similar", (best, f"Because you rated {catalogue.titles[best]} {given:g} stars")))

    table = next(s for s in model.recommender.retrievers if isinstance(s, Covisitation))
    recent = history[-5:]
    after = [float(table.after(np.array([i]), np.array([[item]]))[0, 0]) for i in recent]
    if recent and max(after) > 0:
        best = recent[after.index(max(after))]
        out.append(("watched_after", (best, catalogue.titles[best])))

    counts = {g: sum(g in catalogue.genres_of(i) for i in history) for g in catalogue.genres_of(item)}
    if len(history) >= 5 and counts and 3 * max(counts.values()) >= len(history):
        out.append(("genre", (None, f"{max(counts.values())} of your last {len(history)}")))

    learning = [s for s, name in enumerate(found.candidates.retriever_names) if name in explain.FROM_HISTORIES]
    ranks = [int(r) for r in found.candidates.retriever_ranks[0, at, learning] if r > 0]
    if history and ranks and min(ranks) <= 20:
        out.append(("collaborative", (None, f"place {min(ranks)} of ")))

    lately = model.stats.decayed[:, 1]
    if lately[item] > 0 and lately[item] >= np.quantile(lately, 0.95):
        out.append(("popular", (None, "weeks before 2002-11-29")))
    return out[:3]


def test_reasons_are_true_and_none_is_missing(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    kinds: set[str] = set()
    for user_id in (*USERS, 987_654):
        body = asked(client, user_id)
        states, found = library(service, user_id, world.end + 86_400)
        model = service.champion.model
        for place, item in enumerate(body["items"]):
            told = item["explanation"]["reasons"]
            expected = reasons_by_hand(model, states, found, place)
            assert [reason["kind"] for reason in told] == [kind for kind, _ in expected]
            for reason, (kind, (about, words)) in zip(told, expected, strict=True):
                assert words in reason["text"], kind
                assert reason["item_id"] == (None if about is None else int(model.catalogue.item_ids[about]))
            kinds |= {reason["kind"] for reason in told}
    assert kinds == {"similar", "watched_after", "genre", "collaborative", "popular"}


def test_a_stranger_has_no_history_to_speak_of(client: httpx.Client) -> None:
    body = asked(client, 987_654)
    assert {r["kind"] for item in body["items"] for r in item["explanation"]["reasons"]} <= {"popular"}


def test_items_below_what_is_ranked_have_no_contributions(client: httpx.Client, service: Service) -> None:
    depth = service.champion.model.recommender.settings.rank
    body = asked(client, 7, k=60)
    assert body["degraded"] == []
    for item in body["items"]:
        seen = item["rank"] <= depth
        assert (item["explanation"]["contributions"] is not None) is seen
        assert (item["explanation"]["ranked_rank"] is not None) is seen


def test_without_asking_there_is_no_explanation(client: httpx.Client) -> None:
    body = client.get("/v1/users/7/recommendations").json()
    assert {item["explanation"] for item in body["items"]} == {None}
    assert "explain" not in body["timings_ms"]


def test_contributions_of_the_best_items_come_first_and_end_with_the_time(
    service: Service, world: ServingWorld
) -> None:
    model = service.champion.model
    assert model.recommender.ranker is not None
    states, found = library(service, 7, world.end + 86_400)
    for n_times, done in ((0, 0), (1, explain.ROWS_AT_ONCE), (2, 20)):
        explanations = explain.explain(model, states, found, 20, 0.0)
        looks = iter([True] * n_times + [False])
        complete = explain.add_contributions(model.recommender.ranker, found, explanations, partial(next, looks))
        assert complete is (n_times == 2)
        assert [one["contributions"] is not None for one in explanations] == [True] * done + [False] * (20 - done)
        assert any(one["reasons"] for one in explanations)


def test_no_time_to_explain(service: Service, settings: ServiceSettings) -> None:
    hurried = service.answers.__class__(
        settings.model_copy(update={"explain_share": 1e-9}), service.metrics, service.predictions, time.time
    )
    trace = RequestTrace("r", time.perf_counter(), timings_ms={"queue": 0.0})
    snapshot = UserSnapshot(UserState(5), known=True)
    body, _ = hurried.recommend(service.champion.model, trace, 5, snapshot, RecommendationOptions(10, explain=True))
    assert body["degraded"] == ["explain"]
    assert {item["explanation"]["contributions"] for item in body["items"]} == {None}
    assert all(item["like_probability"] is not None for item in body["items"])
    assert service.metrics.as_dict()["degraded.explain"] == 1


def test_a_failure_of_contributions_leaves_the_reasons(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(explain, "contributions", broken)
    body = asked(client, 7)
    assert body["degraded"] == ["explain"]
    assert {item["explanation"]["contributions"] for item in body["items"]} == {None}
    assert any(item["explanation"]["reasons"] for item in body["items"])
    monkeypatch.setattr("serving.recommending.answers.explain", broken)
    body = asked(client, 7)
    assert body["degraded"] == ["explain"]
    assert {item["explanation"] for item in body["items"]} == {None}
    assert service.metrics.as_dict()["degraded.explain"] == 2


def test_without_the_ranker_there_is_no_place_after_it(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(BoostedRanker, "score", broken)
    body = asked(client, 7, diversity=0.5)
    assert body["degraded"] == ["ranking", "explain"]
    assert {item["explanation"]["ranked_rank"] for item in body["items"]} == {None}
    monkeypatch.setattr(Recommender, "recommend", broken)
    body = asked(client, 7)
    assert body["degraded"] == ["ranking", "retrieval", "explain"]
    assert {item["explanation"] for item in body["items"]} == {None}


def test_retrievers_that_are_not_there_give_no_reasons(service: Service, world: ServingWorld) -> None:
    full = service.champion.model.recommender
    states, _ = library(service, 7, world.end + 86_400)
    for left_out, kind in ((COVISITATION, "watched_after"), ("two_tower", "similar")):
        retrievers = [retriever for retriever in full.retrievers if retriever.name != left_out]
        smaller = Recommender(full.catalogue, retrievers, None, full.settings)

        class Without(ServedModel):
            recommender = smaller  # type: ignore[assignment]

        model = Without(**vars(service.champion.model))
        found = smaller.recommend(states, RequestContext(model.stats), 20)
        explained = explain.explain(model, states, found, 20, 0.0)
        assert kind not in {reason["kind"] for one in explained for reason in one["reasons"]}


def test_items_without_any_genre_are_explained(service: Service, world: ServingWorld) -> None:
    model = service.champion.model
    states, found = library(service, 7, world.end + 86_400)
    bare = replace(model.catalogue, genre_names=(), genres=model.catalogue.genres[:, :0])

    class WithoutGenres(ServedModel):
        catalogue = bare  # type: ignore[assignment]

    explained = explain.explain(WithoutGenres(**vars(model)), states, found, 20, 0.0)
    kinds = {reason["kind"] for one in explained for reason in one["reasons"]}
    assert kinds
    assert "genre" not in kinds
