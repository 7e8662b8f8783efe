"""Events: on disk first, in the state next, in the user's next answer always; torn lines, restarts, failing stores."""

import json
import logging
import threading
from pathlib import Path

import httpx
import pytest

from recsys.errors import StoreError
from recsys.feature_store.user_locks import UserLocks
from recsys.features.state import HISTORY_LENGTH, Event, UserState, state_after
from recsys.features.state_merge import state_from_events
from serving import event_log
from serving.event_log import EventLog, LoggedEvent
from serving.service import Service
from serving.states import UserStates

from .serving_world import ITEMS, ServingWorld


def recommended(client: httpx.Client, user_id: int, k: int = 10) -> list[int]:
    body = client.get(f"/v1/users/{user_id}/recommendations", params={"k": k}).json()
    return [item["item_id"] for item in body["items"]]


def event(user_id: int, item_id: int, timestamp: int, rating: float = 4.0) -> LoggedEvent:
    return LoggedEvent(f"{user_id}-{item_id}-{timestamp}", user_id, item_id, rating, timestamp, 1_700_000_000, "b")


def test_the_next_answer_knows_an_event(client: httpx.Client, service: Service, world: ServingWorld) -> None:
    before = service.store.online_state(8)
    assert before is not None
    rated = recommended(client, 8)[0]
    response = client.post("/v1/events", json={"user_id": 8, "item_id": rated, "rating": 4.5})
    assert response.status_code == 201
    body = response.json()
    assert (body["applied"], body["n_events"], body["timestamp"]) == (True, 16, world.end + 86_400)
    after = service.store.online_state(8)
    assert after is not None
    assert after[0] == state_after(before[0], Event(rated, 4.5, world.end + 86_400))
    assert set(after[1].tolist()) == world.seen(8) | {rated}
    assert rated not in recommended(client, 8, ITEMS)
    assert client.get("/v1/users/8/history").json()["events"][0]["item_id"] == rated
    assert [e.event_id for e in service.event_log.read()] == [body["event_id"]]


def test_an_event_moves_the_order_and_not_only_the_filter(client: httpx.Client) -> None:
    before = recommended(client, 10, ITEMS)
    for item in before[-3:]:
        client.post("/v1/events", json={"user_id": 10, "item_id": item, "rating": 5})
    assert recommended(client, 10, ITEMS) != before[:-3]


def test_a_stranger_becomes_a_user(client: httpx.Client) -> None:
    assert client.get("/v1/users/7001/recommendations").json()["cold_start"] is True
    client.post("/v1/events", json={"user_id": 7001, "item_id": 3, "rating": 5})
    answer = client.get("/v1/users/7001/recommendations", params={"k": ITEMS}).json()
    assert answer["cold_start"] is False
    assert 3 not in [item["item_id"] for item in answer["items"]]
    assert client.get("/v1/users/7001/history").json()["known"] is True


def test_sending_an_event_twice_counts_once(client: httpx.Client, world: ServingWorld) -> None:
    body = {"user_id": 12, "item_id": recommended(client, 12)[0], "rating": 3, "timestamp": world.end}
    counts = [client.post("/v1/events", json=body).json()["n_events"] for _ in range(2)]
    assert counts == [16, 16]


def test_events_of_one_user_at_once_are_all_kept(client: httpx.Client, service: Service) -> None:
    items = recommended(client, 14, 8)
    threads = [
        threading.Thread(
            target=client.post, args=("/v1/events",), kwargs={"json": {"user_id": 14, "item_id": m, "rating": 4}}
        )
        for m in items
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = service.store.online_state(14)
    assert stored is not None
    assert stored[0].n_events == 15 + len(items)
    assert set(items) <= set(stored[1].tolist())


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (
            {"user_id": 1, "item_id": 999, "rating": 4},
            "unknown-item",
            "Item 999 is not in the catalogue of tiny-world.",
        ),
        ({"user_id": 1, "item_id": 3, "rating": 4.3}, "invalid-request", "rating"),
        ({"user_id": 1, "item_id": 3, "rating": 6}, "invalid-request", "rating"),
        ({"user_id": -1, "item_id": 3, "rating": 4}, "invalid-request", "user_id"),
        ({"user_id": 1, "item_id": 3, "rating": 4, "colour": 1}, "invalid-request", "colour"),
        ({"user_id": 1, "item_id": 3, "rating": 4, "timestamp": 9_000_000_000}, "future-event", "lies in the future"),
    ],
)
def test_wrong_events_are_refused(
    client: httpx.Client, service: Service, body: dict[str, float], kind: str, said: str
) -> None:
    response = client.post("/v1/events", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:recsys:problem:{kind}"
    assert said in response.json()["detail"]
    assert list(service.event_log.read()) == []


def test_a_store_that_fails_delays_but_loses_nothing(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = recommended(client, 16, 2)
    with monkeypatch.context() as patch:

        def fails(*_: object, **__: object) -> None:
            raise StoreError("the disk is gone")

        patch.setattr(service.store, "push_state", fails)
        body = client.post("/v1/events", json={"user_id": 16, "item_id": items[0], "rating": 4}).json()
        assert body["applied"] is False
        assert items[0] not in recommended(client, 16, ITEMS)  # known already, from memory
    assert client.post("/v1/events", json={"user_id": 16, "item_id": items[1], "rating": 4}).json()["applied"]
    stored = service.store.online_state(16)
    assert stored is not None
    assert stored[0].n_events == 17
    assert set(items) <= set(stored[1].tolist())
    assert service.metrics.as_dict()["events.pending"] == 1


def test_an_event_that_cannot_be_logged_moves_nothing(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    item = recommended(client, 18)[0]

    def full(_handle: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_log.os, "write", full)
    response = client.post("/v1/events", json={"user_id": 18, "item_id": item, "rating": 4})
    monkeypatch.undo()
    assert response.status_code == 503
    assert response.json()["type"] == "urn:recsys:problem:event-not-stored"
    assert response.headers["retry-after"] == "5"
    assert client.get("/v1/users/18/history").json()["n_events"] == 15
    assert item in recommended(client, 18)


def test_replay_after_a_new_materialisation(service: Service, world: ServingWorld) -> None:
    old = service.store.online_state(20)
    assert old is not None
    items = sorted(set(range(1, ITEMS + 1)) - world.seen(20))[:2]
    for place, item in enumerate(items):
        service.states.record(event(20, item, world.end + place))
    moved = service.store.online_state(20)
    service.store.push_state(old[0], old[1], stamped=old[0].timestamps[-1])  # what a materialisation would do
    again = UserStates(service.store, service.event_log)
    assert again.replay(service.event_log.read()) == 1
    replayed = service.store.online_state(20)
    assert moved is not None
    assert replayed is not None
    assert replayed[0] == moved[0]
    assert replayed[1].tolist() == moved[1].tolist()
    assert again.replay(service.event_log.read()) == 0
    again.close()


class MemoryStore:
    """The part of the feature store that `UserStates` uses."""

    def __init__(self, folder: Path) -> None:
        self.rows: dict[int, tuple[UserState, list[int]]] = {}
        self.locks = UserLocks(folder / "locks")
        self._log = EventLog(folder)

    def whole_state(self, profile: UserState):  # type: ignore[no-untyped-def]
        own = [e for e in self._log.read() if e.user_id == profile.user_id]
        return state_from_events(profile, [Event(e.item_id, e.rating, e.timestamp) for e in own])

    def push_states(self, rows) -> None:  # type: ignore[no-untyped-def]
        for state, seen in rows:
            self.push_state(state, seen, stamped=state.timestamps[-1])

    def online_state(self, user_id: int):  # type: ignore[no-untyped-def]
        return self.online_states([user_id])[0]

    def online_states(self, user_ids):  # type: ignore[no-untyped-def]
        return [self.rows.get(user_id) for user_id in user_ids]

    def push_state(self, state: UserState, seen, *, stamped: int) -> None:  # type: ignore[no-untyped-def]
        assert stamped == state.timestamps[-1]
        self.rows[state.user_id] = (state, seen)


def test_replay_counts_nothing_twice_even_beyond_the_window(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    states = UserStates(store, EventLog(tmp_path))  # type: ignore[arg-type]
    history = [event(1, item, 1_000 + item) for item in range(1, HISTORY_LENGTH + 20)]
    for one in history:
        states.record(one)
    before = store.rows[1][0]
    assert before.n_events == len(history)
    assert states.replay(EventLog(tmp_path).read()) == 0
    assert store.rows[1][0] == before
    states.close()


def test_torn_lines_are_skipped_and_spoil_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = event(1, 2, 10), event(3, 4, 20)
    EventLog(tmp_path).append(first)
    (path,) = tmp_path.iterdir()
    assert path.name == "events-2023-11-14.jsonl"
    with path.open("a") as handle:
        handle.write(json.dumps({"event_id": "torn", "user_id": 9})[:20])
    with caplog.at_level(logging.WARNING):
        assert list(EventLog(tmp_path).read()) == [first]
    assert "1 torn line(s) skipped" in caplog.text
    EventLog(tmp_path).append(second)
    assert list(EventLog(tmp_path).read()) == [first, second]


def test_a_write_that_breaks_off_is_reported_and_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)
    log.append(event(1, 1, 10))
    write = event_log.os.write
    monkeypatch.setattr(event_log.os, "write", lambda handle, data: write(handle, data[:15]))
    with pytest.raises(OSError, match="only 15 of"):
        log.append(event(1, 2, 20))
    monkeypatch.undo()
    log.append(event(1, 3, 30))
    assert [e.item_id for e in log.read()] == [1, 3]


def test_every_line_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = event_log.os.fsync
    monkeypatch.setattr(event_log.os, "fsync", lambda handle: synced.append(handle) or fsync(handle))
    log = EventLog(tmp_path)
    log.append(event(1, 1, 10))
    assert len(synced) == 2  # the file and, as it is new, its folder
    log.append(event(1, 2, 20))
    assert len(synced) == 3


def test_an_empty_log_is_empty(tmp_path: Path) -> None:
    assert list(EventLog(tmp_path / "nothing").read()) == []
