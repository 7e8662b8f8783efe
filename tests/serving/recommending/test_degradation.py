"""Each fallback: reached, named in the answer, counted, and still no rated item where the state is known."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from recsys.errors import StoreError
from recsys.recommender import Recommender
from serving.http.requests import MOST_K
from serving.model_lifecycle.live_traffic import Assignment
from serving.recommending import answers
from serving.recommending.answers import Answers, RecommendationOptions, RequestTrace
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from serving.user_state.snapshots import UserSnapshot
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import connected, recommendations, shown
from tests.serving.serving_world import ITEMS, ServingWorld


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("a planted failure with a secret inside")


def fails_to_read(*_: object, **__: object) -> None:
    raise StoreError("the store is away")


def probabilities(body: dict[str, Any]) -> set[float | None]:
    return {item[name] for item in body["items"] for name in ("watch_probability", "like_probability")}


def test_without_the_store_there_are_the_events(client: httpx.Client, service: Service, store: InMemoryStore) -> None:
    new_user = recommendations(client, 99_999)
    store.failing = True
    body = recommendations(client, 5)
    assert (body["degraded"], body["cold_start"]) == (["user_state"], True)
    assert shown(body) == shown(new_user)
    assert client.get("/v1/users/5/recommendations", params={"k": MOST_K + 1}).status_code == 422
    assert service.metrics.as_dict()["degraded.user_state"] == 1, "a bad request is no degraded answer"
    history = client.get("/v1/users/5/history")
    assert (history.status_code, history.json()["type"]) == (503, "urn:recsys:problem:store-unavailable")
    assert "the store is away" not in history.text
    item = shown(body)[0]
    assert client.post("/v1/events", json={"user_id": 5, "item_id": item, "rating": 4.0}).status_code == 201
    again = recommendations(client, 5)
    assert (again["degraded"], again["cold_start"]) == (["user_state"], False)
    assert item not in shown(again)


def test_a_row_that_was_read_before_stands_in_for_the_store(client: httpx.Client, store: InMemoryStore) -> None:
    before = recommendations(client, 5)
    store.failing = True
    rated = shown(before)[0]
    assert client.post("/v1/events", json={"user_id": 5, "item_id": rated, "rating": 4.0}).status_code == 201
    after = recommendations(client, 5)
    assert after["degraded"] == []
    assert rated not in shown(after)
    assert client.get("/v1/users/5/history").json()["n_events"] == 16


def test_without_the_event_table_there_is_the_row(
    client: httpx.Client, service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = recommendations(client, 5, paginate=True)
    monkeypatch.setattr(service.settings.events, "after", fails_to_read)
    monkeypatch.setattr(service.settings.events, "append", fails_to_read)
    page = recommendations(client, 5, cursor=first["next_cursor"])
    assert (page["degraded"], len(page["items"])) == (["user_state"], 10)
    body = recommendations(client, 5, k=ITEMS)
    assert (body["degraded"], body["cold_start"]) == (["user_state"], False)
    assert not set(shown(body)) & world.seen(5)
    refused = client.post("/v1/events", json={"user_id": 5, "item_id": shown(body)[0], "rating": 4.0})
    assert refused.json()["type"] == "urn:recsys:problem:event-not-stored"
    assert refused.headers["retry-after"] == "5"
    assert service.metrics.as_dict()["events.refused"] == 1


def test_a_slow_store_costs_its_share_of_the_budget_and_holds_up_nobody_else(
    settings: ServiceSettings, service: Service, store: InMemoryStore
) -> None:
    service.settings = settings.model_copy(update={"budget_ms": 1_000.0})
    with connected(settings, service) as client, ThreadPoolExecutor() as callers:
        recommendations(client, 6)
        store.delay_s = 2.0
        started = time.perf_counter()
        slow = callers.submit(client.get, "/v1/users/5/recommendations")
        assert recommendations(client, 6)["degraded"] == []
        assert not slow.done()
        body = slow.result().json()
        assert 0.4 < time.perf_counter() - started < 1.9
    assert (body["degraded"], len(body["items"])) == (["user_state"], 10)


def test_without_the_ranker_there_is_the_order_of_retrieval(
    client: httpx.Client, service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.champion.model.recommender.ranker, "score", broken)
    body = recommendations(client, 5, k=ITEMS)
    assert body["degraded"] == ["ranking"]
    assert probabilities(body) == {None}
    assert not set(shown(body)) & world.seen(5)
    assert service.metrics.as_dict()["degraded.ranking"] == 1


def test_without_retrieval_there_is_the_cold_start_list(
    client: httpx.Client, service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recommender, "recommend", broken)
    body = recommendations(client, 5, k=ITEMS)
    assert body["degraded"] == ["ranking", "retrieval"]
    assert probabilities(body) == {None}
    cold_start = service.champion.model.catalogue.to_ids(service.champion.model.cold_start_idx).tolist()
    assert sorted(cold_start) == list(range(1, ITEMS + 1))
    assert shown(body) == [item for item in cold_start if item not in world.seen(5)]
    scores = [item["score"] for item in body["items"]]
    assert scores == sorted(scores, reverse=True)
    filtered = client.post("/v1/recommendations", json={"filters": {"genres": ["Drama"]}, "k": 100}).json()
    assert set(shown(filtered)) == set(range(1, 41))


def direct(service: Service, began_s_ago: float) -> dict[str, Any]:
    """The answer for user 5 without HTTP, to a request that came some time ago."""
    began = time.perf_counter() - began_s_ago
    trace = RequestTrace("r", began, Assignment(service.champion.model), timings_ms={"queue": 0.0})
    state = service.store.online_state(5)
    assert state is not None
    snapshot = UserSnapshot(state, known=True)
    return service.answers.recommend(trace, 5, snapshot, RecommendationOptions(10))


def test_no_time_for_ranking(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "RETRIEVAL_SHARE", 1e-9)
    body = direct(service, 0.0)
    assert body["degraded"] == ["ranking"]
    assert probabilities(body) == {None}
    assert set(body["timings_ms"]) == {"queue", "state", "retrieval", "ordering", "total"}


def test_no_time_at_all(service: Service, world: ServingWorld) -> None:
    body = direct(service, 3_600.0)
    assert (body["degraded"], len(body["items"])) == (["ranking", "retrieval"], 10)
    assert not set(shown(body)) & world.seen(5)


def test_an_unexpected_failure_is_a_problem_without_its_secrets(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "recommend", broken)
    response = client.get("/v1/users/5/recommendations", headers={"X-Request-ID": "trace-me"})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == "trace-me"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
