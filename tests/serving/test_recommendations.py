"""Answers over HTTP: the same as `Recommender.recommend` gives, from one read of the store, never a rated movie."""

import httpx
import numpy as np
import pytest

from recsys.features.state import Event, UserState, state_after, state_batch
from recsys.recommender import Context, Filters
from serving.service import Service

from .serving_world import MOVIES, USERS, ServingWorld


def ids(response) -> list[int]:  # type: ignore[no-untyped-def]
    assert response.status_code == 200, response.text
    return [item["movie_id"] for item in response.json()["items"]]


def test_answer_is_that_of_the_recommender(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    model = service.model
    stored = service.store.online_state(7)
    assert stored is not None
    states = state_batch(model.catalogue, [stored[0]], [stored[1]], world.end + 86_400)
    expected = model.recommender.recommend(states, Context(model.stats), 12)
    body = client.get("/v1/users/7/recommendations", params={"k": 12}).json()
    assert [item["movie_id"] for item in body["items"]] == expected.item_ids[0].tolist()
    assert [item["score"] for item in body["items"]] == pytest.approx(expected.scores[0].tolist(), abs=1e-5)
    assert [item["rank"] for item in body["items"]] == list(range(1, 13))
    for name, values in (
        ("watch_probability", expected.watch_probability[0]),
        ("like_probability", expected.like_probability[0]),
    ):
        assert [item[name] for item in body["items"]] == pytest.approx(values.tolist(), abs=1e-6)
        assert 0 < min(values) <= max(values) < 1
    assert body["user_id"] == 7
    assert body["dataset"] == {
        "name": "tiny-world",
        "synthetic": True,
        "label": "tiny-world (synthetic, not MovieLens)",
    }
    assert body["model"] == {"version": 1, "bundle_id": world.bundle_id}
    assert (body["cold_start"], body["degraded"]) == (False, [])
    assert set(body["timings_ms"]) == {"state", "retrieval", "features", "ranking", "ordering", "total"}
    first = expected.candidates.source_ranks[0, expected.position[0, 0]]
    names = [name for name, rank in zip(expected.candidates.source_names, first, strict=True) if rank > 0]
    assert body["items"][0]["sources"] == names


def test_nobody_is_shown_a_rated_movie(client: httpx.Client, world: ServingWorld) -> None:
    for user_id in range(1, USERS + 1):
        shown = ids(client.get(f"/v1/users/{user_id}/recommendations", params={"k": MOVIES}))
        assert set(shown) == set(range(1, MOVIES + 1)) - world.seen(user_id)
        assert len(shown) == len(set(shown))


def test_who_stands_below_what_is_ranked_has_no_probability(client: httpx.Client, service: Service) -> None:
    depth = service.model.recommender.settings.rank
    items = client.get("/v1/users/7/recommendations", params={"k": MOVIES}).json()["items"]
    assert len(items) > depth
    for name in ("watch_probability", "like_probability"):
        assert all(item[name] is not None for item in items[:depth])
        assert [item[name] for item in items[depth:]] == [None] * (len(items) - depth)


def test_probabilities_are_documented(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["RecommendedMovie"]
    for name in ("watch_probability", "like_probability"):
        assert name in schema["required"]
        assert "null where" in schema["properties"][name]["description"]
        assert {"type": "null"} in schema["properties"][name]["anyOf"]


def test_unknown_user_gets_the_cold_start_answer(client: httpx.Client, service: Service) -> None:
    response = client.get("/v1/users/123456/recommendations")
    body = response.json()
    assert body["cold_start"] is True
    assert body["degraded"] == []
    assert len(ids(response)) == 10
    assert service.counters.as_dict()["cold_start"] == 1


def test_one_online_read_a_request(client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    bulk = service.store.online_states
    monkeypatch.setattr(service.store, "online_states", lambda users: reads.append(len(users)) or bulk(users))
    client.get("/v1/users/3/recommendations")
    assert reads == [1]
    client.post("/v1/recommendations", json={"history": [{"movie_id": 5, "rating": 4}]})
    client.get("/v1/movies/3/similar")
    assert reads == [1]


def test_history_in_the_body(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    now = world.end + 86_400
    history = [(5, 4.0), (9, 5.0), (70, 2.5)]
    state = UserState(0, gender="F", age=25, occupation="artist")
    for place, (movie, rating) in enumerate(history):
        state = state_after(state, Event(movie, rating, now - 3 + place))
    model = service.model
    expected = model.recommender.recommend(
        state_batch(model.catalogue, [state], [[5, 9, 70]], now), Context(model.stats), 6
    )
    response = client.post(
        "/v1/recommendations",
        json={
            "history": [{"movie_id": movie, "rating": rating} for movie, rating in history],
            "profile": {"gender": "F", "age": 25, "occupation": "artist"},
            "k": 6,
        },
    )
    assert ids(response) == expected.item_ids[0].tolist()
    assert response.json()["user_id"] is None
    assert client.post("/v1/recommendations", json={}).json()["cold_start"] is True


def test_filters(client: httpx.Client, service: Service) -> None:
    asked = {"genres": ["Romance"], "year_from": 1960, "year_to": 1990, "exclude_ids": [45, 50], "min_ratings": 3}
    shown = ids(client.post("/v1/recommendations", json={"filters": asked, "k": 100}))
    catalogue, stats = service.model.catalogue, service.model.stats
    allowed = Filters(("Romance",), 1960, 1990, (45, 50), 3).allowed(catalogue, stats)
    assert allowed is not None
    assert set(shown) == set(catalogue.item_ids[allowed].tolist())
    assert shown
    assert not {45, 50} & set(shown)


def test_a_movie_without_a_year_has_none(client: httpx.Client) -> None:
    movie = client.get("/v1/movies/2/similar").json()["movie"]
    assert movie == {"movie_id": 2, "title": "Film 2 (1952)", "year": None, "genres": ["Drama"]}


def test_similar_is_by_inner_product_without_itself(client: httpx.Client, service: Service) -> None:
    vectors = service.model.recommender.unit_vectors
    scores = vectors @ vectors[16]
    order = [i for i in np.argsort(-scores, kind="stable").tolist() if i != 16]
    body = client.get("/v1/movies/17/similar", params={"k": 5}).json()
    assert [item["movie_id"] for item in body["items"]] == [i + 1 for i in order[:5]]
    assert body["movie"]["movie_id"] == 17
    assert ids(client.get("/v1/movies/17/similar", params={"k": 100})) == [i + 1 for i in order]


def test_history_route(client: httpx.Client, world: ServingWorld) -> None:
    body = client.get("/v1/users/4/history", params={"n": 3}).json()
    own = world.events[world.events["user_id"] == 4].sort_values(["timestamp", "item_id"])
    assert [event["movie_id"] for event in body["events"]] == own["item_id"].tolist()[::-1][:3]
    assert [event["rating"] for event in body["events"]] == own["rating"].tolist()[::-1][:3]
    assert (body["known"], body["n_events"]) == (True, 15)
    assert client.get("/v1/users/999/history").json()["known"] is False


def test_model_card(client: httpx.Client, world: ServingWorld) -> None:
    client.get("/v1/users/3/recommendations")
    card = client.get("/v1/model").json()
    assert card["bundle_id"] == world.bundle_id
    assert card["metrics_of"] == "tiny-evaluation"
    assert card["ndcg_at_10"] == {"mean": 0.21, "low": 0.18, "high": 0.24}
    assert card["dataset"]["synthetic"] is True
    assert card["trained_through"] == world.end - 1
    assert card["item_statistics_day"] == "2002-11-29"
    assert card["counters"]["requests"] == 1
