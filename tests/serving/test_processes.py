"""`recsys serve` as processes: what workers share, what happens when one dies or cannot start, and how all stop."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from recsys.events import EventTable, sqlite_url
from tests.serving.serving_world import ServingWorld, build
from tests.stores.native import free_port

START_S = 240.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServingWorld:
    """With a feature store of its own, as a training leaves it."""
    return build(tmp_path_factory.mktemp("served"))


@contextmanager
def serving(home: ServingWorld, log: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = free_port()
    command = [sys.executable, "-m", "recsys", "serve", "--home", str(home.home.root.parent), "--port", str(port)]
    with log.open("wb") as lines:
        process = subprocess.Popen([*command, "--budget-ms", "60000", *options], stderr=lines)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            until = time.monotonic() + START_S
            while not answers(client):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield process, client
    finally:
        process.terminate()
        process.wait(60)


def answers(client: httpx.Client) -> bool:
    try:
        return httpx.get(f"{client.base_url}/readyz", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The service's own processes, without the one that multiprocessing adds."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_two_workers_share_events_and_metrics_and_one_that_dies_is_replaced(home: ServingWorld, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    with serving(home, log, "--workers", "2") as (process, client):
        before = workers(process)
        assert len(before) == 2
        item = client.get("/v1/users/7/recommendations").json()["items"][0]["item_id"]
        assert client.post("/v1/events", json={"user_id": 7, "item_id": item, "rating": 4}).status_code == 201
        for _ in range(20):  # a new connection each, so that both are asked
            with httpx.Client(base_url=client.base_url, trust_env=False, timeout=60) as other:
                shown = other.get("/v1/users/7/recommendations").json()
            assert item not in [one["item_id"] for one in shown["items"]]
        scraped = client.get("/metrics").text
        assert 'recsys_operations_total{operation="requests"} 21.0' in scraped
        assert 'dataset="tiny-world",version="1"} 2.0' in scraped
        assert all(f'process_resident_memory_bytes{{pid="{pid}"}}' in scraped for pid in before)

        bundles = home.home.bundles
        shutil.move(bundles, tmp_path / "bundles")  # the next worker cannot load its model
        shutil.move(home.home.root.parent / "mlflow", tmp_path / "mlflow")
        os.kill(before[0], signal.SIGKILL)
        until = time.monotonic() + START_S
        while "this worker cannot start" not in log.read_text():
            assert answers(client)
            assert time.monotonic() < until
            time.sleep(0.2)
        assert before[1] in workers(process)
        scraped = client.get("/metrics").text
        assert 'recsys_operations_total{operation="requests"} 21.0' in scraped, "the counts of a dead one stay"
        assert 'dataset="tiny-world",version="1"} 1.0' in scraped, "its gauges do not"
        assert f'pid="{before[0]}"' not in scraped
        shutil.rmtree(home.home.root.parent / "mlflow", ignore_errors=True)
        shutil.rmtree(bundles, ignore_errors=True)
        shutil.move(tmp_path / "mlflow", home.home.root.parent / "mlflow")
        shutil.move(tmp_path / "bundles", bundles)
        while log.read_text().count("ready after") < 3:
            assert answers(client)
            assert time.monotonic() < until
            time.sleep(0.2)
        left = workers(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


def test_one_worker_starts_with_damaged_databases_and_stops_after_what_is_in_flight(
    home: ServingWorld, tmp_path: Path
) -> None:
    log = tmp_path / "serve.log"
    (online,) = home.home.feast.glob("online*.db")
    events = home.home.event_file
    kept = {path: path.read_bytes() for path in (online, events) if path.exists()}
    EventTable(sqlite_url(events)).close()
    for path in (online, events):
        path.write_bytes(b"no database at all" * 1_000)
    try:
        with serving(home, log) as (process, client):
            ready = client.get("/readyz").json()
            assert ready == {"status": "degraded", "failing": ["online store", "event table"]}
            answer = client.get("/v1/users/7/recommendations").json()
            assert (answer["degraded"], len(answer["items"])) == (["user_state"], 10)
            refused = client.post("/v1/events", json={"user_id": 7, "item_id": 5, "rating": 4})
            assert refused.json()["type"] == "urn:recsys:problem:event-not-stored"
            assert "cannot be read" in log.read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert "service stopped" in log.read_text() or "Finished server process" in log.read_text()
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_champion_that_cannot_be_loaded_ends_the_command_with_its_reason(home: ServingWorld, tmp_path: Path) -> None:
    broken = tmp_path / "home"
    shutil.copytree(home.home.root.parent, broken)
    (trees,) = broken.rglob("artifacts/**/ranker.txt")
    trees.write_bytes(trees.read_bytes()[:500])
    shutil.rmtree(broken / "tiny-world" / "bundles", ignore_errors=True)
    command = [sys.executable, "-m", "recsys", "serve", "--home", str(broken), "--port", str(free_port())]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
