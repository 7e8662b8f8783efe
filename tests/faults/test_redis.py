"""Redis hangs, or is gone, and comes back. Kept: answers within their budget, every event, and nothing to catch up."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from recsys.feature_store import FeatureStore
from recsys.settings import Settings
from serving.observability.metrics import Metrics
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.serving.serving_client import connected
from tests.serving.serving_world import build
from tests.stores.native import RedisServer, redis_server

__all__ = ["redis_server"]

BUDGET_MS = 1_000.0
SLACK_S = 2.0  # of a busy machine


@dataclass
class Served:
    client: httpx.Client
    server: RedisServer

    def answer(self, user_id: int) -> dict[str, list[object]]:
        began = time.monotonic()
        response = self.client.get(f"/v1/users/{user_id}/recommendations", params={"k": 80})
        assert response.status_code == 200
        assert time.monotonic() - began < BUDGET_MS / 1e3 + SLACK_S
        body: dict[str, list[object]] = response.json()
        return body

    def rate(self, user_id: int, item_id: int) -> None:
        body = {"user_id": user_id, "item_id": item_id, "rating": 4.5}
        assert self.client.post("/v1/events", json=body).status_code == 201

    def seen(self, user_id: int, item_id: int) -> bool:
        return item_id not in [item["item_id"] for item in self.answer(user_id)["items"]]  # type: ignore[index]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Served]:
    root: Path = tmp_path_factory.mktemp("redis")
    world = build(root)
    settings = Settings(home=root, online_store="redis", redis_connection=redis_server.connection)
    store = FeatureStore(settings.feature_store(world.home))
    store.apply()
    store.materialize()
    store.close()
    options = ServiceSettings.build(settings, world.home, budget_ms=BUDGET_MS, predictions_share=0.0, reload_s=0.0)
    with connected(options, Service.load(options, Metrics())) as client:
        yield Served(client, redis_server)


@pytest.mark.parametrize("fault", ["hanging", "gone"])
def test_away_and_back(served: Served, fault: str) -> None:
    read_before, unread = (9, 10) if fault == "hanging" else (11, 12)
    process = served.server._process
    assert process is not None
    assert served.answer(read_before)["degraded"] == []
    item = 4  # which none of these users has rated in the data set
    if fault == "hanging":
        os.kill(process.pid, signal.SIGSTOP)
    else:
        served.server.stop()
    try:
        assert served.client.get("/readyz").json()["failing"] == ["online store"]
        for user_id, degraded in ((read_before, []), (unread, ["user_state"])):
            served.rate(user_id, item)
            assert served.seen(user_id, item)
            assert served.answer(user_id)["degraded"] == degraded
    finally:
        if fault == "hanging":
            os.kill(process.pid, signal.SIGCONT)
        else:
            served.server.start()
    until = time.monotonic() + 30
    while served.client.get("/readyz").json()["failing"] or served.answer(unread)["degraded"]:
        assert time.monotonic() < until
        time.sleep(0.2)
    # this Redis keeps nothing on disk: whose row was not read before is somebody new until features are made again
    for user_id in (read_before, unread) if fault == "hanging" else (read_before,):
        assert served.client.get(f"/v1/users/{user_id}/history").json()["n_events"] == 16
        assert served.seen(user_id, item)
