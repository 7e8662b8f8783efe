"""Two services with homes of their own, one PostgreSQL and one Redis: two machines, in small."""

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from recsys.columns import ITEM_ID, USER_ID
from recsys.features.state import HISTORY_LENGTH
from tests.conftest import TrainedHome
from tests.stores.native import PostgresServer, RedisServer, free_port

START_S = 240.0
NEWCOMERS = (9_001, 9_002)


@contextmanager
def served(home: Path, environment: dict[str, str]) -> Iterator[httpx.Client]:
    port, log = free_port(), home / "serve.log"
    command = [sys.executable, "-m", "recsys", "serve", "--home", str(home), "--port", str(port)]
    with log.open("wb") as lines:
        process = subprocess.Popen([*command, "--budget-ms", "60000"], stderr=lines, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            until = time.monotonic() + START_S
            while not _ready(client):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def _ready(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/readyz").json()["status"] == "ready")
    except httpx.TransportError:
        return False


def features(home: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "recsys", "train", "--only", "features", "--force", "--home", str(home)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 0, done.stderr


class Writer(threading.Thread):
    """Posts ratings until it is stopped, to each service in turn; `ratings`: acknowledged, by user and item."""

    def __init__(self, clients: list[httpx.Client], pairs: list[tuple[int, int]]) -> None:
        super().__init__()
        self._urls = [str(client.base_url) for client in clients]
        self._pairs, self.stopped = pairs, threading.Event()
        self.ratings: dict[tuple[int, int], float] = {}

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            for n, (user, item) in zip(itertools.count(), self._pairs, strict=False):
                if self.stopped.is_set():
                    return
                rating = 1 + n % 5
                body = {"user_id": user, "item_id": item, "rating": rating}
                response = client.post(f"{self._urls[n % len(self._urls)]}/v1/events", json=body)
                assert response.status_code == 201, response.text
                self.ratings[user, item] = rating
                time.sleep(0.02)


def shown(client: httpx.Client, user: int) -> tuple[list[int], int, dict[int, float]]:
    """The list, how many items the user has rated, and the last of them with their ratings."""
    answer: dict[str, Any] = client.get(f"/v1/users/{user}/recommendations", params={"k": 20}).json()
    assert answer["degraded"] == []
    history = client.get(f"/v1/users/{user}/history", params={"n": HISTORY_LENGTH}).json()
    ratings = {event["item_id"]: event["rating"] for event in history["events"]}
    return [item["item_id"] for item in answer["items"]], history["n_events"], ratings


def test_two_machines_answer_alike_also_while_features_are_materialised(
    trained_home: TrainedHome, tmp_path: Path, redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    homes = [tmp_path / "one", tmp_path / "two"]
    for home in homes:
        shutil.copytree(trained_home.root, home)
    environment = os.environ | {
        "RECSYS_EVENTS_URL": postgres_server.database(),
        "RECSYS_REGISTRY_PATH": postgres_server.database(),
        "RECSYS_ONLINE_STORE": "redis",
        "RECSYS_REDIS_CONNECTION": redis_server.connection,
        "OMP_NUM_THREADS": "1",
    }
    events, items = trained_home.events, trained_home.items[ITEM_ID].tolist()
    rated = events.groupby(USER_ID)[ITEM_ID].agg(set).to_dict()
    users = [*sorted(rated, key=lambda user: len(rated[user]))[:6], *NEWCOMERS]
    unseen = {user: [item for item in items if item not in rated.get(user, set())] for user in users}
    pairs = [(user, unseen[user][n]) for n in range(60) for user in users]
    features(homes[0], environment)
    with ExitStack() as stack:
        clients = [stack.enter_context(served(home, environment)) for home in homes]
        for user in users:  # both machines keep the rows of before
            assert shown(clients[0], user) == shown(clients[1], user)
        writer = Writer(clients, pairs)
        writer.start()
        features(homes[0], environment)
        writer.stopped.set()
        writer.join()
        assert len(writer.ratings) > 50
        for user in users:
            one, two = (shown(client, user) for client in clients)
            assert one == two
            items_shown, n_rated, known = one
            mine = {item: rating for (of, item), rating in writer.ratings.items() if of == user}
            assert mine.items() <= known.items()
            assert n_rated == len(rated.get(user, ())) + len(mine)
            assert not set(items_shown) & known.keys()
        clients.append(stack.enter_context(served(homes[1], environment)))  # a machine that starts with the new rows
        for user in users:
            assert shown(clients[2], user) == shown(clients[0], user)
