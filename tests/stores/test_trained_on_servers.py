"""The whole system with nothing embedded: Redis online, Feast's and MLflow's registries in PostgreSQL.

Trained as a person would, by the environment alone; then served, with events arriving while the feature tables are made
again.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from recsys.feature_store import FeatureStore
from recsys.settings import read_settings
from serving.app import create_app
from serving.settings import ServiceSettings
from tests.conftest import SILENT_USERS, TrainedHome, use_small_settings
from tests.serving.serving_client import running

from .native import PostgresServer, RedisServer, connections_closed


@dataclass(frozen=True)
class Servers:
    home: TrainedHome
    feast: str
    mlflow: str
    redis: RedisServer

    @property
    def settings(self) -> ServiceSettings:
        return ServiceSettings.build(read_settings(self.home.root), self.home.dataset, budget_ms=60_000.0)


@pytest.fixture(scope="module")
def servers(
    redis_server: RedisServer,
    postgres_server: PostgresServer,
    world_files: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Servers]:
    home = TrainedHome(tmp_path_factory.mktemp("servers") / "home", world_files)
    found = Servers(home, postgres_server.database(), postgres_server.database(), redis_server)
    with connections_closed(), pytest.MonkeyPatch.context() as patch:
        use_small_settings(patch)
        patch.setenv("RECSYS_ONLINE_STORE", "redis")
        patch.setenv("RECSYS_REDIS_CONNECTION", redis_server.connection)
        patch.setenv("RECSYS_REGISTRY_PATH", found.feast)
        patch.setenv("MLFLOW_TRACKING_URI", found.mlflow)
        assert home.run("data", "--data-dir", str(world_files), "--dataset", home.name) == 0
        assert home.run("train") == 0
        yield found


@pytest.fixture
def client(servers: Servers) -> Iterator[httpx.Client]:
    with running(create_app(servers.settings)) as client:
        for _ in range(600):
            if client.get("/readyz").status_code == 200:
                break
            threading.Event().wait(0.1)
        yield client


def count(address: str, table: str) -> int:
    with psycopg.connect(address.replace("+psycopg", "")) as connection:
        (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
        return int(found)


def test_training_left_everything_on_the_servers(servers: Servers) -> None:
    home = servers.home
    embedded = [p.name for p in home.root.rglob("*.db")]
    assert embedded == []
    assert count(servers.feast, "feature_views") == 3
    assert count(servers.feast, "feature_services") == 2
    assert count(servers.mlflow, "model_versions") == 1
    assert count(servers.mlflow, "registered_model_aliases") >= 1
    with redis.Redis(port=servers.redis.port) as connection:
        store = FeatureStore(servers.settings.feature_store)
        keys = [key for key in connection.keys("*") if key.endswith(store.config.project.encode())]
    rated = home.events["item_id"].nunique()
    assert len(keys) == len(home.users) + rated
    assert home.run("train") == 0  # everything is up to date
    assert count(servers.mlflow, "model_versions") == 1


def test_the_service_reads_and_writes_there(servers: Servers, client: httpx.Client) -> None:
    user = int(servers.home.events["user_id"].iloc[0])
    known = int((servers.home.events["user_id"] == user).sum())
    answer = client.get(f"/v1/users/{user}/recommendations").json()
    assert (answer["cold_start"], answer["degraded"]) == (False, [])
    item = answer["items"][0]["item_id"]
    event = {"user_id": user, "item_id": item, "rating": 4.5}
    recorded = client.post("/v1/events", json=event).json()
    assert (recorded["applied"], recorded["n_events"]) == (True, known + 1)
    again = client.get(f"/v1/users/{user}/recommendations").json()
    assert item not in [item["item_id"] for item in again["items"]]


def test_the_tables_are_made_again_while_events_arrive(servers: Servers, client: httpx.Client) -> None:
    """`recsys train --only features` beside the service: each acknowledged event is there, at once and afterwards."""
    items = servers.home.items["item_id"].tolist()
    posted: list[int] = []
    done = threading.Event()
    problems: list[str] = []
    (user, other) = SILENT_USERS

    def post() -> None:
        while not done.is_set() and len(posted) < len(items):
            body = {"user_id": user, "item_id": items[len(posted)], "rating": 3.5}
            response = client.post("/v1/events", json=body)
            if response.status_code != 201:
                problems.append(response.text)
                return
            posted.append(body["item_id"])
            done.wait(0.05)

    posting = threading.Thread(target=post)
    posting.start()
    try:
        while len(posted) < 3 and not problems:
            done.wait(0.02)
        assert servers.home.run("train", "--only", "features", "--force") == 0
    finally:
        done.set()
        posting.join()
    assert problems == []
    history = client.get(f"/v1/users/{user}/history", params={"n": 50}).json()
    assert history["n_events"] == len(posted)
    store = FeatureStore(servers.settings.feature_store)
    found = store.online_states([user, other])
    assert found[0] is not None
    assert found[0][1].tolist() == sorted(posted)
    assert found[0][0].gender == "F"
    assert found[1] is not None
    assert found[1][0].n_events == 0
    # and the next materialisation, without a service, has them in its tables
    assert servers.home.run("train", "--only", "features", "--force") == 0
    (state,) = store.historical_states([user], found[0][0].timestamps[-1] + 1)
    assert state == found[0][0]
    store.close()
