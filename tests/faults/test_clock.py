"""The clock of the service goes back, by a minute or by years, and forward again.

Kept: the order of reception in the log; every event once in its user's state, whatever second it claims; ids; answers.
"""

import pytest

from recsys.features.state import Event
from recsys.features.state_merge import state_from_events
from serving.champion import Champion
from serving.observability.metrics import Metrics
from serving.service import Service
from tests.serving.serving_client import connected
from tests.serving.serving_world import ServingWorld

from .conftest import own_events

DAY = 86_400.0


@pytest.mark.parametrize("back_s", [60.0, 3 * DAY, 20 * 365 * DAY])
def test_a_clock_that_goes_back(world: ServingWorld, closing: list[Service], back_s: float) -> None:
    user = 1 + 2 * [60.0, 3 * DAY, 20 * 365 * DAY].index(back_s)
    loaded = Service.load(world.settings, Metrics())
    champion = Champion(world.settings, loaded.store, Metrics(), loaded.champion.model)
    moment = world.end + 10 * DAY
    service = Service(world.settings, champion, loaded.store, Metrics(), clock=lambda: moment)
    closing.append(service)
    already = len(list(service.event_log.read()))
    told = []
    with connected(world.settings, service) as client:
        for item, shift in ((1, 0.0), (2, 1.0), (3, -back_s), (4, -back_s + 1), (5, 2.0)):
            moment = world.end + 10 * DAY + shift
            body = {"user_id": user, "item_id": item, "rating": 4.0, "event_id": f"{user}-{item}"}
            told.append(client.post("/v1/events", json=body).json())
            answer = client.get(f"/v1/users/{user}/recommendations").json()
            assert answer["degraded"] == []
            assert item not in [item["item_id"] for item in answer["items"]]
        moment = world.end + 10 * DAY - back_s
        body = {"user_id": user, "item_id": 1, "rating": 4.0, "event_id": f"{user}-1"}
        again = client.post("/v1/events", json=body).json()
        assert (again["repeated"], again["timestamp"]) == (True, told[0]["timestamp"])
        ahead = {"user_id": user, "item_id": 6, "rating": 4.0, "timestamp": int(moment) + 60}
        assert client.post("/v1/events", json=ahead).json()["type"] == "urn:recsys:problem:future-event"
    logged = list(service.event_log.read())[already:]
    assert [e.item_id for e in logged] == [1, 2, 3, 4, 5]  # in the order in which they came
    assert [e.timestamp for e in logged] == [e.received for e in logged]
    assert logged[2].timestamp < logged[0].timestamp
    expected = own_events(world, user) + [Event(e.item_id, 4.0, e.timestamp) for e in logged]
    stored = service.store.online_state(user)
    assert stored is not None
    assert stored[0] == state_from_events(stored[0], expected)[0]
    assert service.states.catch_up() == 0
