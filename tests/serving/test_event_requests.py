"""POST /v1/events: kinds, batches, events sent again; and any order, duplication and division gives one state."""

import dataclasses
import errno
import os
import random
from typing import Any

import httpx
import pytest

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import StoreError
from recsys.event_log import LoggedEvent
from recsys.features.state import HISTORY_LENGTH, Event, UserState
from recsys.features.state_merge import state_from_events
from serving import event_log, states
from serving.champion import Champion
from serving.client import Client
from serving.observability.metrics import Metrics
from serving.schemas import FeedbackEvent, RatingEvent
from serving.schemas.asked import MOST_EVENTS
from serving.service import Service

from .serving_client import connected
from .serving_world import ITEMS, ServingWorld

KEYED = {"Idempotency-Key": "key-1"}


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


def n_events(client: httpx.Client, user_id: int) -> int:
    n: int = client.get(f"/v1/users/{user_id}/history").json()["n_events"]
    return n


# ---- sent again


@pytest.mark.parametrize("by", ["body", "header"])
def test_an_event_sent_again_is_answered_as_the_first_time(
    client: httpx.Client, service: Service, world: ServingWorld, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a timestamp, so that it is the id alone that says so: a minute later it would be another rating."""
    body: dict[str, Any] = {"user_id": 22, "item_id": 5, "rating": 4}
    key = None if by == "body" else "key-1"
    body |= {"event_id": "key-1"} if by == "body" else {}
    first = post(client, body, key)
    monkeypatch.setattr(service, "_clock", lambda: world.end + 86_460.0)
    again = post(client, body, key)
    assert (first["event_id"], first["repeated"], first["n_events"]) == ("key-1", False, 16)
    assert again == {**first, "repeated": True, "request_id": again["request_id"]}
    assert [e.event_id for e in service.event_log.read()] == ["key-1"]
    assert service.metrics.as_dict()["events.repeated"] == 1
    assert service.metrics.as_dict()["events"] == 1


def test_an_id_survives_a_restart(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    body = {"user_id": 24, "item_id": 5, "rating": 4, "event_id": "key-1"}
    first = post(client, body)
    champion = Champion(world.settings, service.store, Metrics(), service.champion.model)
    restarted = Service(world.settings, champion, service.store, Metrics(), clock=lambda: world.end + 90_000.0)
    with connected(world.settings, restarted) as other:
        again = post(other, body)
    assert again == {**first, "repeated": True, "request_id": again["request_id"]}
    assert len(list(service.event_log.read())) == 1


def test_an_id_of_another_event_is_refused(client: httpx.Client, service: Service) -> None:
    post(client, {"user_id": 26, "item_id": 5, "rating": 4, "event_id": "key-1"})
    problem = refused(client, {"user_id": 26, "item_id": 6, "rating": 4}, headers=KEYED)
    assert problem["type"] == "urn:recsys:problem:event-id-reused"
    assert problem["detail"] == "The id 'key-1' was used before, for another event."
    many = {"events": [{"user_id": 26, "item_id": n, "rating": 4, "event_id": f"key-{n // 7}"} for n in (5, 6, 7)]}
    assert refused(client, many)["type"] == "urn:recsys:problem:event-id-reused"
    assert len(list(service.event_log.read())) == 1
    assert n_events(client, 26) == 16


def test_an_event_that_was_logged_and_not_applied_is_applied_when_it_is_sent_again(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"user_id": 28, "item_id": 5, "rating": 4, "event_id": "key-1"}

    def fails(*_: object, **__: object) -> None:
        raise StoreError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "push_state", fails)
        first = post(client, body)
    again = post(client, body)
    assert (first["applied"], first["n_events"], again["applied"], again["n_events"]) == (False, 16, True, 16)
    assert service.store.online_state(28)[0].n_events == 16  # type: ignore[index]


def test_what_is_pending_is_tried_again_with_anybody_s_read(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure does not open the circuit; the user need not come back for the store to learn of the event."""

    def fails(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(states, "AGAIN_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(service.store, "push_state", fails)
        assert post(client, {"user_id": 34, "item_id": 5, "rating": 4})["applied"] is False
        for _ in range(3):  # tried in vain
            client.get("/v1/users/36/recommendations")
    for _ in range(200):
        client.get("/v1/users/36/recommendations")
        if service.store.online_state(34)[0].n_events == 16:  # type: ignore[index]
            break
    assert service.store.online_state(34)[0].n_events == 16  # type: ignore[index]
    assert len(service.states._pending) == 0


# ---- kinds


def test_other_kinds_are_logged_and_move_nothing(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    shown = client.get("/v1/users/38/recommendations").json()
    item = shown["items"][0]["item_id"]
    before = service.store.online_state(38)
    common = {"user_id": 38, "item_id": item, "request_id": shown["request_id"]}
    for kind in ("impression", "watch"):
        answer = post(client, {**common, "kind": kind, "event_id": kind})
        moment = world.end + 86_400
        assert answer == {
            "request_id": answer["request_id"],
            "event_id": kind,
            "user_id": 38,
            "item_id": item,
            "kind": kind,
            "timestamp": moment,
            "applied": True,
            "repeated": False,
            "n_events": None,
        }
    facts = (38, item, None, moment, moment, world.bundle_id)
    more = (shown["request_id"], moment * 1_000_000)
    assert list(service.event_log.read()) == [
        LoggedEvent(kind, *facts, kind, *more) for kind in ("impression", "watch")
    ]
    after = service.store.online_state(38)
    assert before is not None
    assert after is not None
    assert (after[0], after[1].tolist()) == (before[0], before[1].tolist())
    assert service.states.catch_up() == 0
    assert client.get("/v1/users/38/recommendations").json()["items"] == shown["items"]
    assert service.metrics.as_dict()["events.logged"] == 2
    assert "events" not in service.metrics.as_dict()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"user_id": 1, "item_id": 3}, "rating: Field required"),
        ({"user_id": 1, "item_id": 3, "kind": "watch", "rating": 4}, "rating: Extra inputs are not permitted"),
        ({"user_id": 1, "item_id": 3, "kind": "click"}, "kind: Input should be 'rating'"),
        ({"user_id": 1, "item_id": 3, "rating": 4, "event_id": "a b"}, "event_id: String should match pattern"),
        ({"user_id": 1, "item_id": 3, "rating": 4, "event_id": ""}, "event_id: String should have at least 1"),
        ({"user_id": 1, "item_id": 3, "rating": 4, "event_id": "x" * 129}, "event_id: String should have at most"),
        ({"events": []}, "events: List should have at least 1 item"),
        ({"events": [{"user_id": 1, "item_id": 3}]}, "rating: Field required"),
        ({"events": [{"user_id": 1, "item_id": 3, "rating": 4}], "user_id": 1}, "user_id: Extra inputs"),
        (
            {"events": [{"user_id": 1, "item_id": 3, "rating": 4}, {"user_id": 1, "item_id": 999, "rating": 4}]},
            "Item 999 is not in the catalogue",
        ),
        ({"events": [{"user_id": 1, "item_id": 3, "rating": 4, "timestamp": 9_000_000_000}]}, "in the future"),
    ],
)
def test_what_is_wrong_is_refused_whole(
    client: httpx.Client, service: Service, body: dict[str, Any], said: str
) -> None:
    assert said in refused(client, body)["detail"]
    assert list(service.event_log.read()) == []


def test_a_wrong_key_is_refused(client: httpx.Client) -> None:
    body = {"user_id": 1, "item_id": 3, "rating": 4}
    assert "String should match pattern" in refused(client, body, headers={"Idempotency-Key": "a b"})["detail"]


# ---- several at once


def test_a_batch_is_one_write_and_answers_each_event(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    post(client, {"user_id": 40, "item_id": 1, "kind": "watch"})  # the file is there
    monkeypatch.setattr(event_log.os, "fsync", lambda handle: synced.append(handle) or fsync(handle))
    events: list[dict[str, Any]] = [{"user_id": 42, "item_id": n, "rating": 4, "timestamp": n} for n in (1, 2, 3)]
    events += [{"user_id": 44, "item_id": 2, "kind": "watch"}, {"user_id": 44, "item_id": 2, "rating": 1}]
    answer = post(client, {"events": events}, "b-1")
    told = answer["events"]
    assert len(synced) == 1
    assert [(e["user_id"], e["item_id"], e["kind"], e["n_events"]) for e in told] == [
        *((42, n, "rating", 18) for n in (1, 2, 3)),
        (44, 2, "watch", None),
        (44, 2, "rating", 16),
    ]
    assert [e["event_id"] for e in told] == [f"b-1/{n}" for n in range(5)]
    assert all(e["applied"] and not e["repeated"] for e in told)
    again = post(client, {"events": events}, "b-1")["events"]
    assert again == [{**e, "repeated": True} for e in told]
    assert len(list(service.event_log.read())) == 6
    assert (n_events(client, 42), n_events(client, 44)) == (18, 16)


def test_the_largest_batch_moves_every_user(client: httpx.Client, service: Service) -> None:
    events = [{"user_id": 9_000 + n, "item_id": 1 + n % ITEMS, "rating": 3.5} for n in range(MOST_EVENTS)]
    told = post(client, {"events": events})["events"]
    assert {(e["applied"], e["n_events"]) for e in told} == {(True, 1)}
    assert len({e["event_id"] for e in told}) == MOST_EVENTS
    found = service.store.online_states([9_000 + n for n in range(MOST_EVENTS)])
    assert [state.item_ids for state, _ in found] == [(1 + n % ITEMS,) for n in range(MOST_EVENTS)]  # type: ignore[misc]
    assert "at most 500" in refused(client, {"events": [*events, events[0]]})["detail"]


def test_a_batch_that_cannot_be_logged_moves_nobody(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(handle: int, data: bytes) -> int:
        write(handle, data[: len(data) // 2])  # the first lines are whole
        raise OSError(errno.ENOSPC, "No space left on device")

    body = {"events": [{"user_id": 46 + 2 * (n % 2), "item_id": 1 + n, "rating": 4} for n in range(20)]}
    with monkeypatch.context() as patch:
        patch.setattr(event_log.os, "write", full)
        response = client.post("/v1/events", json=body, headers=KEYED)
    assert (response.status_code, response.json()["type"]) == (503, "urn:recsys:problem:event-not-stored")
    assert list(service.event_log.read()) == []
    assert (n_events(client, 46), n_events(client, 48)) == (15, 15)
    assert service.metrics.as_dict()["events.refused"] == 20
    assert not any(e["repeated"] for e in post(client, body, "key-1")["events"])
    assert len(list(service.event_log.read())) == 20


def test_a_batch_whose_store_fails_is_pending(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise StoreError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(service.store, "push_states", fails)
        events = [{"user_id": user, "item_id": 1, "rating": 4} for user in (50, 52)]
        told = post(client, {"events": events})["events"]
    assert [(e["applied"], e["n_events"]) for e in told] == [(False, 16), (False, 16)]
    assert service.metrics.as_dict()["events.pending"] == 2


# ---- the client


def test_the_client_sends_an_event_again_where_no_answer_comes(client: httpx.Client, service: Service) -> None:
    """The service has logged it; its answer is lost on the way."""
    inner, lost = httpx.HTTPTransport(), []

    class Lossy(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = inner.handle_request(request)
            response.read()
            if len(lost) < 2:
                lost.append(response.status_code)
                raise httpx.ReadError("the connection was lost", request=request)
            return response

    with Client(str(client.base_url), transport=Lossy(), sleep=lambda _: None) as asking:
        recorded = asking.record(54, 5, 4.0)
        assert lost == [201, 201]
        assert (recorded.repeated, recorded.n_events) == (True, 16)
        lost.clear()
        many: list[RatingEvent | FeedbackEvent] = [
            RatingEvent(user_id=54, item_id=6, rating=3.0),
            FeedbackEvent(user_id=54, item_id=7, kind="impression", event_id="own", request_id="r"),
        ]
        told = asking.record_many(many)
        assert [(e.repeated, e.n_events) for e in told] == [(True, 17), (True, None)]
        assert told[1].event_id == "own"
        assert asking.record(54, 8, kind="watch", request_id="r").kind == "watch"
        lost.clear()
        with pytest.raises(httpx.ReadError):  # what is no event is not sent again
            asking.history(54)
    with Client(str(client.base_url), transport=Lossy(), retries=1, sleep=lambda _: None) as asking:
        lost.clear()
        with pytest.raises(httpx.ReadError):
            asking.record(54, 9, 4.0)
        assert lost == [201, 201]
    assert len(list(service.event_log.read())) == 5
    inner.close()


# ---- any order


@pytest.mark.parametrize("seed", range(3))
def test_any_order_duplication_and_division_gives_the_state_of_the_set(
    client: httpx.Client, service: Service, world: ServingWorld, seed: int
) -> None:
    """Ratings and feedback of users of the store and strangers, some ratings contradicting others of their second, some
    items rated again, histories longer than a window; sent in any order, one by one and in batches, some twice under
    their id and some under another. The same again after all that the store knows of them is made anew from the log."""
    rng = random.Random(seed)
    users = [56, 57, 58, 20_000 + seed, 30_000 + seed]
    before = {user: service.store.online_state(user) for user in users}
    own: dict[int, list[Event]] = {
        user: [
            Event(*row)
            for row in world.events.loc[world.events[USER_ID] == user, [ITEM_ID, RATING, TIMESTAMP]].itertuples(
                index=False, name=None
            )
        ]
        for user in users
    }
    bodies: list[dict[str, Any]] = []
    for number in range(330):
        user = rng.choice([*users, users[-1], users[-1]])  # the last has most
        timestamp = rng.choice([world.end - 86_400 * 3, world.end]) + rng.randrange(3_000)
        body: dict[str, Any] = {"user_id": user, "item_id": rng.randint(1, ITEMS), "timestamp": timestamp}
        if rng.random() < 0.2:
            bodies.append({**body, "kind": rng.choice(["watch", "impression"]), "event_id": f"{seed}-{number}"})
            continue
        for place in range(1 if rng.random() < 0.9 else 2):  # two say different things of one second
            rating = rng.randint(1, 10) / 2
            own[user].append(Event(body["item_id"], rating, timestamp))
            bodies.append({**body, "rating": rating, "event_id": f"{seed}-{number}-{place}"})
    sent = bodies + rng.sample(bodies, 60) + [{k: v for k, v in b.items() if k != "event_id"} for b in bodies[:30]]
    rng.shuffle(sent)
    while sent:
        size = 1 if rng.random() < 0.6 else rng.randint(2, 40)
        part, sent = sent[:size], sent[size:]
        told = post(client, {"events": part})["events"] if size > 1 else [post(client, part[0])]
        assert all(e["applied"] for e in told)
    expected = {}
    for user in users:
        profile = before[user][0] if before[user] is not None else UserState(user)  # type: ignore[index]
        expected[user] = state_from_events(profile, own[user])
    assert expected[users[-1]][0].n_events > HISTORY_LENGTH
    logged = [e.event_id for e in service.event_log.read()]
    assert len(logged) == len(bodies) + 30
    for made_anew in (False, True):
        if made_anew:
            for user in users:  # as after a materialisation of tables that do not know the log
                old = before[user]
                empty = dataclasses.replace(expected[user][0], **_nothing()), []
                state, seen = old if old is not None else empty
                service.store.push_state(state, seen, stamped=1)
            assert service.states.replay(service.event_log.read()) == len(users)
        for user in users:
            state, seen = service.store.online_state(user)  # type: ignore[misc]
            assert state == expected[user][0]
            assert sorted(set(seen.tolist())) == expected[user][1].tolist()


def _nothing() -> dict[str, Any]:
    cold = UserState(0)
    return {f.name: getattr(cold, f.name) for f in dataclasses.fields(UserState) if f.name != "user_id"}
