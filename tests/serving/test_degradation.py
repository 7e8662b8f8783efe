"""Each fallback: reached, named in the answer, counted, and still no rated item where the state is known."""

import threading
import time

import httpx
import numpy as np
import pytest

from recsys.errors import StoreError
from recsys.feature_store import FeatureStore
from recsys.recommender import Recommender, RequestContext
from serving.answers import Answers, Call, Wanted
from serving.service import Service
from serving.settings import ServiceSettings

from .serving_client import connected
from .serving_world import ITEMS, ServingWorld


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


def test_state_unreadable(client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    new_user = answer(client, 99_999)
    monkeypatch.setattr(service.store, "online_state", fails_to_read)
    body = answer(client)
    assert body["degraded"] == ["user_state"]
    assert body["cold_start"] is True
    assert shown(body) == shown(new_user)
    assert service.metrics.as_dict()["degraded.user_state"] == 1
    history = client.get("/v1/users/5/history")
    assert history.status_code == 503
    assert history.json()["type"] == "urn:recsys:problem:store-unavailable"
    assert "the store is away" not in history.text


def test_a_state_that_was_read_before_is_used_while_the_store_is_away(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen stays out of the list, and so does what is rated meanwhile and waits for the store."""
    before = answer(client)
    monkeypatch.setattr(service.store, "online_state", fails_to_read)
    degraded = answer(client)
    assert degraded["degraded"] == ["user_state"]
    assert degraded["cold_start"] is False
    assert shown(degraded) == shown(before)
    rated = shown(before)[0]
    recorded = client.post("/v1/events", json={"user_id": before["user_id"], "item_id": rated, "rating": 4.0}).json()
    assert recorded["applied"] is False
    assert rated not in shown(answer(client))


def test_state_too_slow(service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = world.settings.model_copy(update={"budget_ms": 400.0, "last_share": 1.0, "retrieval_share": 1.0})
    slow = Service(settings, service.champion, service.store, service.metrics)
    monkeypatch.setattr(service.store, "online_state", lambda *_, **__: time.sleep(1.0))
    with connected(settings, slow) as client:
        started = time.perf_counter()
        body = answer(client)
        assert time.perf_counter() - started < 0.9
    assert body["degraded"][0] == "user_state"
    assert len(body["items"]) == 10


def test_a_store_that_must_be_waited_for_holds_up_nobody_else(
    service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network away: user 5's read takes 0.3 s, and another user is answered meanwhile."""
    settings = world.settings.model_copy(update={"budget_ms": 5_000.0})
    waiting = Service(settings, service.champion, service.store, service.metrics)
    read, begun, told = service.store.online_state, threading.Event(), []

    def slowly(user_id: int, **_: object) -> object:
        if user_id == 5:
            begun.set()
            time.sleep(0.3)
        return read(user_id)

    monkeypatch.setattr(FeatureStore, "local", False)
    monkeypatch.setattr(service.store, "online_state", slowly)
    with connected(settings, waiting) as client:
        answer(client, 6)

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, trust_env=False, timeout=30) as other:
                told.append(answer(other))

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(20)
        other = answer(client, 6)
        assert not told
        asking.join()
    (slow,) = told
    assert (slow["degraded"], other["degraded"]) == ([], [])
    assert slow["timings_ms"]["state"] >= 300.0
    assert slow["timings_ms"]["queue"] < slow["timings_ms"]["state"]
    parts = sum(ms for stage, ms in slow["timings_ms"].items() if stage != "total")
    assert parts == pytest.approx(slow["timings_ms"]["total"], rel=0.2)
    assert shown(slow) == shown(answer_of_file(service, settings))


def test_a_bad_request_is_no_degraded_answer(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user was read ahead, in vain, before it was found to be bad: what is counted are answers."""
    monkeypatch.setattr(FeatureStore, "local", False)
    monkeypatch.setattr(service.store, "online_state", fails_to_read)
    assert client.get("/v1/users/5/recommendations", params={"k": service.settings.max_k + 1}).status_code == 422
    assert "degraded.user_state" not in service.metrics.as_dict()
    assert answer(client)["degraded"] == ["user_state"]
    assert service.metrics.as_dict()["degraded.user_state"] == 1


def answer_of_file(service: Service, settings: ServiceSettings):  # type: ignore[no-untyped-def]
    """What user 5 gets from the fixture's own service."""
    with connected(settings, service) as client:
        return answer(client)


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


def direct(answers: Answers, service: Service, call: Call, wanted: Wanted | None = None):  # type: ignore[no-untyped-def]
    """The answer for user 5 without HTTP."""
    model, known = service.champion.model, service.states.read(5)
    return answers.recommend(model, call, 5, known, wanted or Wanted(10))[0]


def test_no_time_for_ranking(service: Service, world: ServingWorld) -> None:
    settings = world.settings.model_copy(update={"retrieval_share": 1e-9})
    answers = Answers(settings, service.metrics, service.predictions, lambda: world.end)
    body = direct(answers, service, Call("r", time.perf_counter()))
    assert body["degraded"] == ["ranking"]
    assert probabilities(body) == {None}
    assert set(body["timings_ms"]) == {"state", "retrieval", "ordering", "total"}


def test_no_time_at_all(service: Service, world: ServingWorld) -> None:
    body = direct(service.answers, service, Call("r", time.perf_counter() - 3_600))
    assert body["degraded"] == ["ranking", "retrieval"]
    assert len(body["items"]) == 10
    assert not set(shown(body)) & world.seen(5)


def test_the_rest_of_the_budget_reaches_the_recommender(
    service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[RequestContext] = []
    recommend = service.champion.model.recommender.recommend

    def watch(states, context, *asked):  # type: ignore[no-untyped-def]
        given.append(context)
        return recommend(states, context, *asked)

    monkeypatch.setattr(service.champion.model.recommender, "recommend", watch)
    direct(service.answers, service, Call("r", time.perf_counter() - 10.0))
    whole = world.settings.budget_ms * world.settings.retrieval_share
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
