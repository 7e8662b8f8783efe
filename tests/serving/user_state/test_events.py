"""POST /v1/events: kinds, batches, events sent again; and any order, duplication and division gives one state."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from recsys.data.tables import load_tables
from recsys.events import EventTable
from recsys.features.catalogue import Catalogue
from recsys.features.state import HISTORY_LENGTH, Event, UserState, fold
from recsys.limits import MOST_EVENTS
from serving.http.problems import ProblemError
from serving.http.requests import EventRequest
from serving.model_lifecycle.served_model import ServedModel
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.serving import serving_client
from tests.serving.conftest import service_of
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import connected, recommendations
from tests.serving.serving_world import ITEMS, ServingWorld


def post(client: httpx.Client, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    response = client.post("/v1/events", json=body, headers={} if key is None else {"Idempotency-Key": key})
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(client: httpx.Client, body: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = client.post("/v1/events", json=body, **more)
    assert response.status_code == 422
    problem: dict[str, Any] = response.json()
    return problem


def shown(client: httpx.Client, user_id: int) -> list[int]:
    return serving_client.shown(recommendations(client, user_id, k=ITEMS))


def n_events(client: httpx.Client, user_id: int) -> int:
    n: int = client.get(f"/v1/users/{user_id}/history").json()["n_events"]
    return n


@pytest.fixture
def other_worker(
    settings: ServiceSettings, store: InMemoryStore, model: ServedModel, world: ServingWorld
) -> Iterator[httpx.Client]:
    """Another process's view of the same home: its own table object, its own memory."""
    own = settings.model_copy(update={"events": EventTable(settings.events.url)})
    with connected(own, service_of(own, InMemoryStore(store.rows, world.timeline), model, world)) as other:
        yield other


def test_the_next_list_of_every_worker_knows_an_event(client: httpx.Client, other_worker: httpx.Client) -> None:
    for user_id in (16, 777):
        item = shown(other_worker, user_id)[0]
        answer = post(client, {"user_id": user_id, "item_id": item, "rating": 4.5, "timestamp": 1_038_525_300})
        assert answer == {
            "request_id": answer["request_id"],
            "event_id": answer["event_id"],
            "user_id": user_id,
            "item_id": item,
            "kind": "rating",
            "timestamp": 1_038_525_300,
            "repeated": False,
        }
        for worker in (client, other_worker):
            assert item not in shown(worker, user_id)
            newest = worker.get(f"/v1/users/{user_id}/history").json()["events"][0]
            assert (newest["item_id"], newest["rating"]) == (item, 4.5)


@pytest.mark.parametrize("key", [None, "key-1"])
def test_an_event_sent_again_is_answered_as_the_first_time(
    client: httpx.Client, other_worker: httpx.Client, service: Service, key: str | None
) -> None:
    """Its id comes in the body or in the header."""
    body = {"user_id": 22, "item_id": 5, "rating": 4, **({} if key else {"event_id": "key-1"})}
    first, again, elsewhere = post(client, body, key), post(client, body, key), post(other_worker, body, key)
    assert (first["event_id"], first["repeated"]) == ("key-1", False)
    for answer in (again, elsewhere):
        assert answer == {**first, "repeated": True, "request_id": answer["request_id"]}
    assert len(list(service.settings.events.read())) == 1
    counted = service.metrics.as_dict()
    assert (counted["events.stored"], counted["events.repeated"]) == (1, 1)


def test_an_id_of_another_event_is_refused(client: httpx.Client, service: Service) -> None:
    post(client, {"user_id": 26, "item_id": 5, "rating": 4, "event_id": "key-1"})
    keyed = {"Idempotency-Key": "key-1"}
    problem = refused(client, {"user_id": 26, "item_id": 6, "rating": 4}, headers=keyed)
    assert problem["type"] == "urn:recsys:problem:event-id-reused"
    many = {"events": [{"user_id": 26, "item_id": n, "rating": 4, "event_id": f"key-{n // 7}"} for n in (5, 6, 7)]}
    assert refused(client, many)["type"] == "urn:recsys:problem:event-id-reused"
    assert len(list(service.settings.events.read())) == 1


def test_other_kinds_are_stored_and_move_nothing(client: httpx.Client, service: Service) -> None:
    first = recommendations(client, 38)
    common = {"user_id": 38, "item_id": first["items"][0]["item_id"], "request_id": first["request_id"]}
    for kind in ("impression", "watch"):
        assert post(client, {**common, "kind": kind, "event_id": kind})["kind"] == kind
    stored = list(service.settings.events.read())
    assert [(event.kind, event.value, event.request_id) for event in stored] == [
        (kind, None, first["request_id"]) for kind in ("impression", "watch")
    ]
    assert recommendations(client, 38)["items"] == first["items"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"user_id": 1, "item_id": 3}, "kind 'rating' needs a rating"),
        ({"user_id": 1, "item_id": 3, "kind": "watch", "rating": 4}, "kind 'watch' takes no rating"),
        ({"user_id": 1, "item_id": 3, "kind": "click"}, "kind: Input should be 'rating'"),
        ({"user_id": 1, "item_id": 3, "rating": 4, "event_id": "a b"}, "event_id: String should match pattern"),
        ({"user_id": 1, "item_id": 3, "rating": 4, "event_id": "x" * 129}, "event_id: String should have at most"),
        ({"events": []}, "events: List should have at least 1 item"),
        ({"events": [{"user_id": 1, "item_id": 3}]}, "needs a rating"),
        ({"events": [{"user_id": 1, "item_id": 3, "rating": 4}], "user_id": 1}, "unknown key 'user_id'"),
        (
            {"events": [{"user_id": 1, "item_id": 3, "rating": 4}, {"user_id": 1, "item_id": 999, "rating": 4}]},
            "Item 999 is not in the catalogue",
        ),
        ({"events": [{"user_id": 1, "item_id": 3, "rating": 4, "timestamp": 9_000_000_000}]}, "in the future"),
        ({"user_id": 1, "item_id": 3, "rating": 0.0}, "rating"),
        ({"user_id": 1, "item_id": 3, "rating": 3.3}, "rating"),
        ({"user_id": 1, "item_id": 3, "rating": "4"}, "rating"),
        ({"user_id": 2**53, "item_id": 3, "rating": 4}, "user_id"),
        ({"user_id": True, "item_id": 3, "rating": 4}, "user_id"),
        ({"user_id": 1, "item_id": 1.5, "rating": 4}, "item_id"),
        ({"user_id": 1, "item_id": 3, "rating": 4, "timestamp": 0}, "timestamp"),
    ],
)
def test_what_is_wrong_is_refused_whole(
    client: httpx.Client, service: Service, body: dict[str, Any], words: str
) -> None:
    assert words in refused(client, body)["detail"]
    assert len(list(service.settings.events.read())) == 0


def test_a_batch_is_answered_in_order_under_ids_of_its_key(client: httpx.Client, service: Service) -> None:
    events: list[dict[str, Any]] = [{"user_id": 42, "item_id": n, "rating": 4, "timestamp": n} for n in (1, 2, 3)]
    events += [{"user_id": 44, "item_id": 2, "kind": "watch"}, {"user_id": 44, "item_id": 2, "rating": 1}]
    recorded = post(client, {"events": events}, "b-1")["events"]
    assert [(e["user_id"], e["item_id"], e["kind"]) for e in recorded] == [
        *((42, n, "rating") for n in (1, 2, 3)),
        (44, 2, "watch"),
        (44, 2, "rating"),
    ]
    assert [e["event_id"] for e in recorded] == [f"b-1/{n}" for n in range(5)]
    assert post(client, {"events": events}, "b-1")["events"] == [{**e, "repeated": True} for e in recorded]
    assert len(list(service.settings.events.read())) == 5


def test_the_largest_batch_and_no_larger_one(client: httpx.Client) -> None:
    events = [{"user_id": 9_000 + n, "item_id": 1 + n % ITEMS, "rating": 3.5} for n in range(MOST_EVENTS)]
    assert len({e["event_id"] for e in post(client, {"events": events})["events"]}) == MOST_EVENTS
    assert n_events(client, 9_000 + MOST_EVENTS - 1) == 1
    assert "at most 500" in refused(client, {"events": [*events, events[0]]})["detail"]


@pytest.mark.parametrize("seed", range(2))
def test_any_order_duplication_and_division_gives_the_state_of_the_set(
    client: httpx.Client, other_worker: httpx.Client, world: ServingWorld, seed: int
) -> None:
    """Of users of the store and new ones, through two workers, histories longer than a window, one by one and in
    batches, some twice under their id."""
    rng = random.Random(seed)
    users = [56, 57, 20_000 + seed]
    events = [
        {
            "user_id": rng.choice(users),
            "item_id": item,
            "rating": rng.randint(1, 10) / 2,
            "timestamp": 1_036_800_000 + 1_000 * place + item,
            "event_id": f"{seed}-{place}-{item}",
        }
        for place in range(3)
        for item in rng.sample(range(1, ITEMS + 1), ITEMS - 5)
    ]
    sent = [*events, *rng.sample(events, 30)]
    rng.shuffle(sent)
    while sent:
        n = rng.randint(1, 25)
        part, sent = sent[:n], sent[n:]
        post(rng.choice([client, other_worker]), part[0] if len(part) == 1 else {"events": part})
    for user_id in users:
        own = [Event(e["item_id"], e["rating"], e["timestamp"]) for e in events if e["user_id"] == user_id]
        expected = fold(world.states.get(user_id, UserState(user_id)), own)
        for worker in (client, other_worker):
            found = worker.get(f"/v1/users/{user_id}/history", params={"n": HISTORY_LENGTH}).json()
            assert found["n_events"] == expected.n_events
            window = zip(expected.item_ids, expected.ratings, expected.timestamps, strict=True)
            assert [(e["item_id"], e["rating"], e["timestamp"]) for e in found["events"]] == list(window)[::-1]
            assert not set(shown(worker, user_id)) & set(expected.seen_item_ids)


def test_an_item_that_only_a_version_of_the_trial_knows_can_be_rated(service: Service, world: ServingWorld) -> None:
    tables = load_tables(world.home.data)
    older, newer = (Catalogue.from_tables(tables.items[:n], tables.users) for n in (ITEMS - 1, ITEMS))
    body = EventRequest.model_validate({"user_id": 7, "item_id": ITEMS, "rating": 4.0})
    with pytest.raises(ProblemError, match=f"Item {ITEMS} is not in the catalogue"):
        asyncio.run(service.intake.record([older], "r", body, None))
    assert asyncio.run(service.intake.record([older, newer], "r", body, None))["item_id"] == ITEMS
