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


def ids(response) -> list[int]:  # type: ignore[no-untyped-def]
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


def expected_of(
    service: Service, user_id: int, now: int, k: int, filters: Filters | None = None, diversity: float = 0.0
) -> Recommendations:
    """What the library answers for a stored user."""
    model = service.champion.model
    stored = service.store.online_state(user_id)
    assert stored is not None
    states = state_batch(model.catalogue, [stored], now)
    return model.recommender.recommend(states, RequestContext(model.stats), k, filters, diversity)


def told(found: Recommendations) -> list[dict[str, Any]]:
    """The part of each item that the library decides, exactly as the service rounds it."""
    names = found.candidates.retriever_names
    out = []
    for place, item_id in enumerate(found.item_ids[0].tolist()):
        if item_id < 0:
            break
        ranks = found.candidates.retriever_ranks[0, found.position[0, place]].tolist()
        shares = (float(found.watch_probability[0, place]), float(found.like_probability[0, place]))
        watch, like = (None if np.isnan(share) else round(share, 6) for share in shares)
        out.append(
            {
                "item_id": item_id,
                "rank": place + 1,
                "score": round(float(found.scores[0, place]), 6),
                "watch_probability": watch,
                "like_probability": like,
                "retrievers": [name for name, rank in zip(names, ranks, strict=True) if rank > 0],
            }
        )
    return out


def decided(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("item_id", "rank", "score", "watch_probability", "like_probability", "retrievers")
    return [{key: item[key] for key in keys} for item in items]


FILTERED = {"genre": ["Drama", "Romance"], "year_from": 1955, "year_to": 2005, "exclude_ids": [3, 50], "min_ratings": 4}


@pytest.mark.parametrize(("filtered", "diversity"), list(product((False, True), (0.0, 0.35, 1.0))))
def test_every_user_gets_what_the_library_answers(
    client: httpx.Client, service: Service, world: ServingWorld, filtered: bool, diversity: float
) -> None:
    asked: dict[str, Any] = {"k": 15, "diversity": diversity, **(FILTERED if filtered else {})}
    filters = Filters(("Drama", "Romance"), 1955, 2005, (3, 50), 4) if filtered else None
    for user_id in range(1, USERS + 1):
        body = client.get(f"/v1/users/{user_id}/recommendations", params=asked).json()
        found = expected_of(service, user_id, world.end + 86_400, 15, filters, diversity)
        assert decided(body["items"]) == told(found)
        assert body["degraded"] == []
        titles = {item["item_id"]: (item["title"], item["year"], item["genres"]) for item in body["items"]}
        catalogue = service.champion.model.catalogue
        for item_id, (title, year, genres) in titles.items():
            idx = int(catalogue.to_idx(item_id))
            assert (title, genres) == (catalogue.titles[idx], catalogue.genres_of(idx))
            assert year == (None if np.isnan(catalogue.years[idx]) else int(catalogue.years[idx]))


def test_several_users_in_one_call(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    """In the order asked, twice where asked twice, each as alone up to what a batch rounds differently."""
    asked = [9, 4, 9, 123_456, *range(20, 40)]
    body = client.post(
        "/v1/users/recommendations",
        json={"user_ids": asked, "k": 7, "filters": {"genres": ["Drama"]}, "diversity": 0.3},
    ).json()
    assert [answer["user_id"] for answer in body["answers"]] == asked
    for answer in body["answers"]:
        alone = client.get(
            f"/v1/users/{answer['user_id']}/recommendations", params={"k": 7, "genre": "Drama", "diversity": 0.3}
        ).json()
        assert [i["item_id"] for i in answer["items"]] == [i["item_id"] for i in alone["items"]]
        assert [i["score"] for i in answer["items"]] == pytest.approx([i["score"] for i in alone["items"]], abs=1e-5)
        assert answer["cold_start"] is alone["cold_start"] is (answer["user_id"] == 123_456)
        assert (answer["degraded"], answer["problem"]) == ([], None)
    assert body["degraded"] == []
    assert body["model"] == {"version": 1, "bundle_id": world.bundle_id}
    assert service.metrics.as_dict()["cold_start"] == 2


def test_a_wrong_user_spoils_no_other(client: httpx.Client) -> None:
    asked = [9, "nobody", -1, 2**63, 10**30, 4]
    answers = client.post("/v1/users/recommendations", json={"user_ids": asked, "k": 3}).json()["answers"]
    assert [answer["user_id"] for answer in answers] == [9, "nobody", -1, str(2**63), str(10**30), 4]
    for answer in (answers[0], answers[5]):
        assert (len(answer["items"]), answer["problem"]) == (3, None)
    for answer in answers[1:5]:
        assert answer["items"] == []
        assert answer["problem"]["type"] == "urn:recsys:problem:invalid-user"
        assert answer["problem"]["status"] == 422
    only_wrong = client.post("/v1/users/recommendations", json={"user_ids": ["x"]}).json()
    assert [answer["problem"]["status"] for answer in only_wrong["answers"]] == [422]


@pytest.mark.parametrize("user_ids", [[], list(range(51)), [1.5], [None], [True]])
def test_how_many_users_may_be_asked_for(client: httpx.Client, user_ids: list[object]) -> None:
    assert client.post("/v1/users/recommendations", json={"user_ids": user_ids}).status_code == 422


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
        (responses.Recorded, client.post("/v1/events", json={"user_id": 7, "item_id": 4, "rating": 3})),
        (responses.ModelCard, client.get("/v1/model")),
        (responses.Health, client.get("/healthz")),
        (responses.Health, client.get("/readyz")),
    ]
    for model, response in answers:
        assert response.is_success, response.text
        assert response.headers["content-type"] == "application/json"
        assert exact(model.model_validate(response.json())) == response.json(), model.__name__


def exact(model: BaseModel) -> Any:
    return model.model_dump(mode="json")


def test_answers_name_their_stages_in_a_header(client: httpx.Client) -> None:
    response = client.get("/v1/users/7/recommendations")
    told = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert {stage: float(ms) for stage, ms in told.items()} == response.json()["timings_ms"]


def test_a_item(client: httpx.Client, world: ServingWorld) -> None:
    own = world.events[world.events["item_id"] == 5]["rating"]
    body = client.get("/v1/items/5").json()
    assert body["item"] == {"item_id": 5, "title": "Film 5 (1955)", "year": 1955, "genres": ["Drama"]}
    assert (body["n_ratings"], body["mean_rating"]) == (len(own), round(float(own.mean()), 3))
    missing = client.get("/v1/items/999")
    assert missing.status_code == 404
    assert missing.json()["type"] == "urn:recsys:problem:unknown-item"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"genre": "Opera"}, "unknown genre 'Opera'"),
        ({"year_from": 2000, "year_to": 1990}, "lies after"),
        ({"diversity": 1.5}, "query.diversity"),
        ({"diversity": "nan"}, "query.diversity"),
        ({"colour": "red"}, "query.colour"),
        ({"exclude_ids": [1] * 201}, "query.exclude_ids"),
        ({"min_ratings": -1}, "query.min_ratings"),
    ],
)
def test_wrong_filters_are_refused(client: httpx.Client, asked: dict[str, Any], said: str) -> None:
    response = client.get("/v1/users/7/recommendations", params=asked)
    assert response.status_code == 422
    assert said in response.json()["detail"]


def test_an_answer_names_its_data_its_model_and_its_stages(client: httpx.Client, world: ServingWorld) -> None:
    body = client.get("/v1/users/7/recommendations", params={"k": 12}).json()
    assert body["user_id"] == 7
    label = "tiny-world (synthetic, not MovieLens)"
    assert body["dataset"] == {"name": "tiny-world", "synthetic": True, "label": label}
    assert body["model"] == {"version": 1, "bundle_id": world.bundle_id}
    assert (body["cold_start"], body["degraded"]) == (False, [])
    assert set(body["timings_ms"]) == {"queue", "state", "retrieval", "features", "ranking", "ordering", "total"}


def test_nobody_is_shown_a_rated_item(client: httpx.Client, world: ServingWorld) -> None:
    for user_id in range(1, USERS + 1):
        shown = ids(client.get(f"/v1/users/{user_id}/recommendations", params={"k": ITEMS}))
        assert set(shown) == set(range(1, ITEMS + 1)) - world.seen(user_id)
        assert len(shown) == len(set(shown))


def test_who_stands_below_what_is_ranked_has_no_probability(client: httpx.Client, service: Service) -> None:
    depth = service.champion.model.recommender.settings.rank
    items = client.get("/v1/users/7/recommendations", params={"k": ITEMS}).json()["items"]
    assert len(items) > depth
    for name in ("watch_probability", "like_probability"):
        assert all(item[name] is not None for item in items[:depth])
        assert [item[name] for item in items[depth:]] == [None] * (len(items) - depth)


def test_probabilities_are_documented(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()["components"]["schemas"]["RecommendedItem"]
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
    assert service.metrics.as_dict()["cold_start"] == 1


def test_the_store_is_read_once_a_user_and_not_for_a_history_in_the_body(
    client: httpx.Client, store: InMemoryStore
) -> None:
    before = store.reads
    for _ in range(3):
        client.get("/v1/users/3/recommendations")
    client.post("/v1/recommendations", json={"history": [{"item_id": 5, "rating": 4}]})
    client.get("/v1/items/3/similar")
    assert store.reads == before + 1


def test_history_in_the_body(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    now = world.end + 86_400
    history = [(5, 4.0), (9, 5.0), (70, 2.5)]
    events = [Event(item, rating, now - 3 + place) for place, (item, rating) in enumerate(history)]
    state = fold(UserState(0, gender="F", age=25, occupation="artist"), events)
    model = service.champion.model
    expected = model.recommender.recommend(state_batch(model.catalogue, [state], now), RequestContext(model.stats), 6)
    response = client.post(
        "/v1/recommendations",
        json={
            "history": [{"item_id": item, "rating": rating} for item, rating in history],
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
    catalogue, stats = service.champion.model.catalogue, service.champion.model.stats
    allowed = Filters(("Romance",), 1960, 1990, (45, 50), 3).allowed(catalogue, stats)
    assert allowed is not None
    assert set(shown) == set(catalogue.item_ids[allowed].tolist())
    assert shown
    assert not {45, 50} & set(shown)


def test_a_item_without_a_year_has_none(client: httpx.Client) -> None:
    item = client.get("/v1/items/2/similar").json()["item"]
    assert item == {"item_id": 2, "title": "Film 2 (1952)", "year": None, "genres": ["Drama"]}


def test_similar_is_by_inner_product_without_itself(client: httpx.Client, service: Service) -> None:
    vectors = service.champion.model.recommender.unit_vectors
    scores = vectors @ vectors[16]
    order = [i for i in np.argsort(-scores, kind="stable").tolist() if i != 16]
    body = client.get("/v1/items/17/similar", params={"k": 5}).json()
    assert [item["item_id"] for item in body["items"]] == [i + 1 for i in order[:5]]
    assert body["item"]["item_id"] == 17
    assert ids(client.get("/v1/items/17/similar", params={"k": 100})) == [i + 1 for i in order]


def test_history_route(client: httpx.Client, world: ServingWorld) -> None:
    body = client.get("/v1/users/4/history", params={"n": 3}).json()
    own = world.events[world.events["user_id"] == 4].sort_values(["timestamp", "item_id"])
    assert [event["item_id"] for event in body["events"]] == own["item_id"].tolist()[::-1][:3]
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


def test_reload_on_demand(client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    body = client.post("/v1/admin/reload").json()
    assert responses.Reloaded.model_validate(body).model_dump() == body
    assert (body["outcome"], body["failure"]) == ("unchanged", None)
    assert body["model"] == {"version": 1, "bundle_id": service.champion.model.bundle.facts.bundle_id}
    monkeypatch.setattr(service.champion, "reload", lambda: "refused")
    monkeypatch.setattr(service.champion, "_last_failure", "version 2 is broken")
    body = client.post("/v1/admin/reload").json()
    assert (body["outcome"], body["failure"]) == ("refused", "version 2 is broken")
