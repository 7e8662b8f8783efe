"""Answers over HTTP: the same as `Recommender.recommend` gives, from one read of the store, never a rated item."""

from itertools import product
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import BaseModel

from recsys.features.state import Event, UserState, fold, state_batch
from recsys.filters import Filters
from recsys.recommender import Recommendations, RequestContext
from serving.http import responses
from serving.recommending.service import Service
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_world import ITEMS, USERS, ServingWorld

BY_THE_LIBRARY = ("item_id", "rank", "score", "watch_probability", "like_probability", "retrievers")
FILTERED = {"genre": ["Drama", "Romance"], "year_from": 1955, "year_to": 2005, "exclude_ids": [3, 50], "min_ratings": 4}


def ids(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


def recommended(
    service: Service, state: UserState, now: int, k: int, filters: Filters | None = None, diversity: float = 0.0
) -> Recommendations:
    model = service.champion.model
    states = state_batch(model.catalogue, [state], now)
    return model.recommender.recommend(states, RequestContext(model.stats), k, filters, diversity)


def as_items(best: Recommendations) -> list[dict[str, Any]]:
    """The part of each item that the library decides, as the service rounds it."""
    names = best.candidates.retriever_names
    out = []
    for place in range(int((best.item_ids[0] >= 0).sum())):
        ranks = best.candidates.retriever_ranks[0, best.position[0, place]].tolist()
        shares = (float(best.watch_probability[0, place]), float(best.like_probability[0, place]))
        watch, like = (None if np.isnan(share) else round(share, 6) for share in shares)
        retrievers = [name for name, rank in zip(names, ranks, strict=True) if rank > 0]
        values = (int(best.item_ids[0, place]), place + 1, round(float(best.scores[0, place]), 6), watch, like)
        out.append(dict(zip(BY_THE_LIBRARY, (*values, retrievers), strict=True)))
    return out


@pytest.mark.parametrize(("filtered", "diversity"), list(product((False, True), (0.0, 0.35))))
def test_every_user_gets_what_the_library_answers(
    client: httpx.Client, service: Service, world: ServingWorld, filtered: bool, diversity: float
) -> None:
    options: dict[str, Any] = {"k": 15, "diversity": diversity, **(FILTERED if filtered else {})}
    filters = Filters(("Drama", "Romance"), 1955, 2005, (3, 50), 4) if filtered else None
    catalogue = service.champion.model.catalogue
    for user_id in range(1, USERS + 1):
        body = client.get(f"/v1/users/{user_id}/recommendations", params=options).json()
        best = recommended(service, world.states[user_id], world.end + 86_400, 15, filters, diversity)
        assert [{name: item[name] for name in BY_THE_LIBRARY} for item in body["items"]] == as_items(best)
        assert body["degraded"] == []
        for item in body["items"]:
            idx = int(catalogue.to_idx(item["item_id"]))
            assert (item["title"], item["genres"]) == (catalogue.titles[idx], catalogue.genres_of(idx))
            assert item["year"] == (None if np.isnan(catalogue.years[idx]) else int(catalogue.years[idx]))


def test_nobody_is_shown_a_rated_item_and_only_what_is_ranked_has_probabilities(
    client: httpx.Client, service: Service, world: ServingWorld
) -> None:
    depth = service.champion.model.recommender.settings.rank
    for user_id in range(1, USERS + 1):
        items = client.get(f"/v1/users/{user_id}/recommendations", params={"k": ITEMS}).json()["items"]
        assert sorted(item["item_id"] for item in items) == sorted(set(range(1, ITEMS + 1)) - world.seen(user_id))
        for name in ("watch_probability", "like_probability"):
            assert [item[name] is not None for item in items] == [True] * depth + [False] * (len(items) - depth)


def test_an_answer_names_its_data_its_model_and_its_stages(client: httpx.Client, world: ServingWorld) -> None:
    body = client.get("/v1/users/7/recommendations", params={"k": 12}).json()
    assert body["user_id"] == 7
    label = "tiny-world (synthetic, not MovieLens)"
    assert body["dataset"] == {"name": "tiny-world", "synthetic": True, "label": label}
    assert body["model"] == {"version": 1, "bundle_id": world.bundle_id}
    assert (body["cold_start"], body["degraded"]) == (False, [])
    assert set(body["timings_ms"]) == {"queue", "state", "retrieval", "features", "ranking", "ordering", "total"}


def test_several_users_in_one_call(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    """In the order of the request, twice where named twice, each as alone; a wrong one spoils no other."""
    user_ids = [9, 4, 9, 123_456, "nobody", -1, 2**63, 10**30, *range(20, 40)]
    body = client.post(
        "/v1/users/recommendations",
        json={"user_ids": user_ids, "k": 7, "filters": {"genres": ["Drama"]}, "diversity": 0.3},
    ).json()
    expected = [str(one) if isinstance(one, int) and one >= 2**63 else one for one in user_ids]
    assert [answer["user_id"] for answer in body["answers"]] == expected
    for answer in body["answers"][4:8]:
        assert (answer["items"], answer["problem"]["status"]) == ([], 422)
        assert answer["problem"]["type"] == "urn:recsys:problem:invalid-user"
    for answer in [*body["answers"][:4], *body["answers"][8:]]:
        alone = client.get(
            f"/v1/users/{answer['user_id']}/recommendations", params={"k": 7, "genre": "Drama", "diversity": 0.3}
        ).json()
        assert answer["items"] == alone["items"]
        assert answer["cold_start"] is alone["cold_start"] is (answer["user_id"] == 123_456)
        assert (answer["degraded"], answer["problem"]) == ([], None)
    assert body["degraded"] == []
    assert body["model"] == {"version": 1, "bundle_id": world.bundle_id}
    assert service.metrics.as_dict()["cold_start"] == 2


@pytest.mark.parametrize("user_ids", [[], list(range(51)), [1.5], [None], [True]])
def test_how_many_users_one_call_takes(client: httpx.Client, user_ids: list[object]) -> None:
    assert client.post("/v1/users/recommendations", json={"user_ids": user_ids}).status_code == 422


def test_history_in_the_body(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    now = world.end + 86_400
    history = [(5, 4.0), (9, 5.0), (70, 2.5)]
    events = [Event(item, rating, now - 3 + place) for place, (item, rating) in enumerate(history)]
    state = fold(UserState(0, gender="F", age=25, occupation="artist"), events)
    body = {
        "history": [{"item_id": item, "rating": rating} for item, rating in history],
        "profile": {"gender": "F", "age": 25, "occupation": "artist"},
    }
    response = client.post("/v1/recommendations", json={**body, "k": 6})
    assert ids(response) == recommended(service, state, now, 6).item_ids[0].tolist()
    assert response.json()["user_id"] is None
    assert client.post("/v1/recommendations", json={}).json()["cold_start"] is True
    wanted = {"genres": ["Romance"], "year_from": 1960, "year_to": 1990, "exclude_ids": [45, 50], "min_ratings": 3}
    filters = Filters(("Romance",), 1960, 1990, (45, 50), 3)
    filtered = ids(client.post("/v1/recommendations", json={**body, "filters": wanted, "k": 100}))
    best = recommended(service, state, now, 100, filters).item_ids[0]
    assert filtered == best[best >= 0].tolist()
    assert filtered


def test_the_store_is_read_once_a_user_and_not_for_a_history_in_the_body(
    client: httpx.Client, store: InMemoryStore
) -> None:
    before = store.reads
    for _ in range(3):
        client.get("/v1/users/3/recommendations")
    client.post("/v1/recommendations", json={"history": [{"item_id": 5, "rating": 4}]})
    client.get("/v1/items/3/similar")
    assert store.reads == before + 1


def test_an_item_and_those_like_it(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    own = world.events[world.events["item_id"] == 5]["rating"]
    body = client.get("/v1/items/5").json()
    assert body["item"] == {"item_id": 5, "title": "Film 5 (1955)", "year": 1955, "genres": ["Drama"]}
    assert (body["n_ratings"], body["mean_rating"]) == (len(own), round(float(own.mean()), 3))
    for path in ("/v1/items/999", "/v1/items/999/similar"):
        missing = client.get(path)
        assert (missing.status_code, missing.json()["type"]) == (404, "urn:recsys:problem:unknown-item")
    vectors = service.champion.model.recommender.unit_vectors
    order = [i for i in np.argsort(-(vectors @ vectors[16]), kind="stable").tolist() if i != 16]
    assert ids(client.get("/v1/items/17/similar", params={"k": 5})) == [i + 1 for i in order[:5]]
    assert ids(client.get("/v1/items/17/similar", params={"k": 100})) == [i + 1 for i in order]
    without_year = client.get("/v1/items/2/similar").json()["item"]
    assert without_year == {"item_id": 2, "title": "Film 2 (1952)", "year": None, "genres": ["Drama"]}


def test_history_route(client: httpx.Client, world: ServingWorld) -> None:
    body = client.get("/v1/users/4/history", params={"n": 3}).json()
    own = world.events[world.events["user_id"] == 4].sort_values(["timestamp", "item_id"])
    newest = list(zip(own["item_id"].tolist(), own["rating"].tolist(), strict=True))[::-1][:3]
    assert [(event["item_id"], event["rating"]) for event in body["events"]] == newest
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


def test_every_answer_fits_its_documented_model(client: httpx.Client) -> None:
    """Answers are not validated when they are given, so they are here: no field too few, none too many."""
    page = client.get("/v1/users/7/recommendations", params={"paginate": True}).json()
    answers: list[tuple[type[BaseModel], httpx.Response]] = [
        (responses.Recommended, client.get("/v1/users/7/recommendations", params={"k": 100})),
        (responses.Recommended, client.get("/v1/users/99999/recommendations")),
        (responses.Recommended, client.get("/v1/users/7/recommendations", params={"explain": True, "diversity": 0.5})),
        (responses.Recommended, client.get("/v1/users/7/recommendations", params={"cursor": page["next_cursor"]})),
        (responses.Recommended, client.post("/v1/recommendations", json={"explain": True})),
        (responses.ManyRecommended, client.post("/v1/users/recommendations", json={"user_ids": [1, "x", 99999]})),
        (responses.Similar, client.get("/v1/items/2/similar")),
        (responses.ItemDetails, client.get("/v1/items/2")),
        (responses.ItemSearch, client.get("/v1/items", params={"q": "film"})),
        (responses.UserHistory, client.get("/v1/users/7/history")),
        (responses.RecordedOne, client.post("/v1/events", json={"user_id": 7, "item_id": 4, "rating": 3})),
        (responses.ModelCard, client.get("/v1/model")),
        (responses.Reloaded, client.post("/v1/admin/reload")),
        (responses.Health, client.get("/healthz")),
        (responses.Health, client.get("/readyz")),
    ]
    for model, response in answers:
        assert response.is_success, response.text
        assert response.headers["content-type"] == "application/json"
        assert model.model_validate(response.json()).model_dump(mode="json") == response.json(), model.__name__
