"""Each fallback: reached, named in the answer, counted, and still no rated item where the state is known."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from recsys.errors import StoreError
from recsys.recommender import Recommender, RequestContext
from serving.http.requests import MOST_K
from serving.recommending.answers import Answers
from serving.recommending.options import RecommendationOptions, RequestTrace
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from serving.user_state.snapshots import UserSnapshot
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import connected
from tests.serving.serving_world import ITEMS, ServingWorld


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("a planted failure with a secret inside")


def fails_to_read(*_: object, **__: object) -> None:
    raise StoreError("the store is away")


def answer(client: httpx.Client, user_id: int = 5, k: int = 10):  # type: ignore[no-untyped-def]
    response = client.get(f"/v1/users/{user_id}/recommendations", params={"k": k})
    assert response.status_code == 200
    return response.json()


def shown(body) -> list[int]:  # type: ignore[no-untyped-def]
    return [item["item_id"] for item in body["items"]]


def probabilities(body) -> set[float | None]:  # type: ignore[no-untyped-def]
    return {item[name] for item in body["items"] for name in ("watch_probability", "like_probability")}


def test_without_the_store_there_are_the_events(client: httpx.Client, service: Service, store: InMemoryStore) -> None:
    new_user = answer(client, 99_999)
    store.failing = True
    body = answer(client)
    assert (body["degraded"], body["cold_start"]) == (["user_state"], True)
    assert shown(body) == shown(new_user)
    assert service.metrics.as_dict()["degraded.user_state"] == 1
    history = client.get("/v1/users/5/history")
    assert history.status_code == 503
    assert history.json()["type"] == "urn:recsys:problem:store-unavailable"
    assert "the store is away" not in history.text
    item = shown(body)[0]
    assert client.post("/v1/events", json={"user_id": 5, "item_id": item, "rating": 4.0}).status_code == 201
    again = answer(client)
    assert (again["degraded"], again["cold_start"]) == (["user_state"], False)
    assert item not in shown(again)


def test_a_row_that_was_read_before_stands_in_for_the_store(client: httpx.Client, store: InMemoryStore) -> None:
    before = answer(client)
    store.failing = True
    assert answer(client)["degraded"] == []
    rated = shown(before)[0]
    assert client.post("/v1/events", json={"user_id": 5, "item_id": rated, "rating": 4.0}).status_code == 201
    after = answer(client)
    assert after["degraded"] == []
    assert rated not in shown(after)
    assert client.get("/v1/users/5/history").json()["n_events"] == 16


def test_without_the_event_table_there_is_the_row(
    client: httpx.Client, service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.settings.events, "after", fails_to_read)
    monkeypatch.setattr(service.settings.events, "append", fails_to_read)
    body = answer(client, k=ITEMS)
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
        answer(client, 6)
        store.delay_s = 2.0
        started = time.perf_counter()
        slow = callers.submit(client.get, "/v1/users/5/recommendations")
        assert answer(client, 6)["degraded"] == []
        assert not slow.done()
        body = slow.result().json()
        assert 0.4 < time.perf_counter() - started < 1.9
    assert body["degraded"] == ["user_state"]
    assert len(body["items"]) == 10


def test_a_bad_request_is_no_degraded_answer(client: httpx.Client, service: Service, store: InMemoryStore) -> None:
    store.failing = True
    assert client.get("/v1/users/5/recommendations", params={"k": MOST_K + 1}).status_code == 422
    assert "degraded.user_state" not in service.metrics.as_dict()


def test_ranker_fails(
    client: httpx.Client, service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.champion.model.recommender.ranker is not None
    monkeypatch.setattr(service.champion.model.recommender.ranker, "score", broken)
    body = answer(client, k=ITEMS)
    assert body["degraded"] == ["ranking"]
    assert probabilities(body) == {None}
    assert not set(shown(body)) & world.seen(5)
    plain = service.champion.model.retrieval_only
    assert plain.ranker is None
    assert service.metrics.as_dict()["degraded.ranking"] == 1


def test_retrieval_fails_too(
    client: httpx.Client, service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recommender, "recommend", broken)
    body = answer(client, k=ITEMS)
    assert body["degraded"] == ["ranking", "retrieval"]
    assert probabilities(body) == {None}
    assert set(shown(body)) == set(range(1, ITEMS + 1)) - world.seen(5)
    new_user = service.champion.model.catalogue.to_ids(service.champion.model.cold_start_idx)
    assert shown(body) == [i for i in new_user.tolist() if i not in world.seen(5)]
    filtered = client.post("/v1/recommendations", json={"filters": {"genres": ["Drama"]}, "k": 100}).json()
    assert set(shown(filtered)) == set(range(1, 41))


def test_the_cold_start_list_is_that_of_a_stranger(service: Service) -> None:
    model = service.champion.model
    assert sorted(model.cold_start_idx.tolist()) == list(range(ITEMS))
    assert np.all(np.diff(model.cold_start_scores) <= 0)


def direct(service: Service, began_s_ago: float, **shares: float) -> dict[str, Any]:
    """The answer for user 5 without HTTP, asked for some time ago."""
    settings = service.settings.model_copy(update=shares)
    answers = Answers(settings, service.metrics, service.predictions, time.time)
    trace = RequestTrace("r", time.perf_counter() - began_s_ago, timings_ms={"queue": 0.0})
    state = service.store.online_state(5)
    assert state is not None
    options = RecommendationOptions(10)
    return answers.recommend(service.champion.model, trace, 5, UserSnapshot(state, known=True), options)[0]


def test_no_time_for_ranking(service: Service) -> None:
    body = direct(service, 0.0, retrieval_share=1e-9)
    assert body["degraded"] == ["ranking"]
    assert probabilities(body) == {None}
    assert set(body["timings_ms"]) == {"queue", "state", "retrieval", "ordering", "total"}


def test_no_time_at_all(service: Service, world: ServingWorld) -> None:
    body = direct(service, 3_600.0)
    assert body["degraded"] == ["ranking", "retrieval"]
    assert len(body["items"]) == 10
    assert not set(shown(body)) & world.seen(5)


def test_the_rest_of_the_budget_reaches_the_recommender(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[RequestContext] = []
    recommend = service.champion.model.recommender.recommend

    def watch(states, context, *asked):  # type: ignore[no-untyped-def]
        given.append(context)
        return recommend(states, context, *asked)

    monkeypatch.setattr(service.champion.model.recommender, "recommend", watch)
    direct(service, 10.0)
    whole = service.settings.budget_ms * service.settings.retrieval_share
    assert given[0].budget_ms is not None
    assert whole - 11_000 < given[0].budget_ms < whole - 10_000


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
