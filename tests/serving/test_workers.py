"""The service as processes: it starts, shares a port and a log, loses no event and no accepted request, and stops."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from recsys.feature_store import FeatureStore
from tests.faults.soak import store_away
from serving.event_log import EventLog

from .serving_world import DATASET, ServingWorld, build

KEY = "a-long-random-text-0123456789"
START_LIMIT_S = 300  # of a machine that does other things too


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=30)

    def wait_ready(self, workers: int = 1) -> None:
        """Each worker says so once it is."""
        self.wait_said("ready after", workers)

    def wait_said(self, text: str, times: int = 1) -> None:
        until = time.monotonic() + START_LIMIT_S
        while sum(text in line for line in self.lines) < times:
            assert self.process.poll() is None, "".join(self.lines)[-4000:]
            assert time.monotonic() < until, "".join(self.lines)[-4000:]
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(START_LIMIT_S)


@contextlib.contextmanager
def served(root: Path, *options: str, dataset: str = DATASET, **environment: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "recsys", "serve", "--home", str(root), "--dataset", dataset, "--port", "0"]
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    lines: list[str] = []
    heard = threading.Event()
    assert process.stderr is not None
    stderr = process.stderr

    def listen() -> None:
        for line in stderr:
            lines.append(line)
            heard.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        until = time.monotonic() + START_LIMIT_S
        while not (found := re.search(r"at (http://\S+:\d+)/", "".join(lines))):
            assert time.monotonic() < until, lines
            if process.poll() is not None:
                listener.join()
                break
            heard.wait(0.1)
        yield Running(process, found[1] if found else "", lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        listener.join()
        stderr.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home that other processes may write to."""
    folder = tmp_path_factory.mktemp("workers")
    build(folder)
    yield folder
    shutil.rmtree(folder)


def children(pid: int) -> set[int]:
    """Worker processes, without the helper that Python's spawn brings along."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in listed if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}


def test_two_workers_lose_no_event_of_one_user(root: Path, world: ServingWorld) -> None:
    """Forty events of one user at once from eight clients, over both workers: all in the log, all in the state. The
    key of the environment reaches both, and stays out of what others can see."""
    items = list(range(1, 41))
    failed: list[str] = []
    with served(root, "--workers", "2", "--log-format", "json", RECSYS_API_KEY=KEY) as service:
        service.wait_ready(2)
        pids = children(service.process.pid)
        assert len(pids) == 2
        assert not any(KEY in Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
        assert not any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in pids)  # answers need no torch

        def send(own: list[int]) -> None:
            for item_id in own:  # a connection each, so that both workers get some
                with service.client() as client:
                    event = {"user_id": 777, "item_id": item_id, "rating": 4.0, "timestamp": 1_500_000_000 + item_id}
                    response = client.post("/v1/events", json=event, headers={"X-API-Key": KEY})
                    if response.status_code != 201 or not response.json()["applied"]:
                        failed.append(response.text)

        senders = [threading.Thread(target=send, args=(items[n::8],)) for n in range(8)]
        for thread in senders:
            thread.start()
        for thread in senders:
            thread.join()
        for _ in range(10):
            with service.client() as client:
                assert client.post("/v1/admin/reload").status_code == 401
                body = client.get("/v1/users/777/history", params={"n": 64}).json()
                assert sorted(event["item_id"] for event in body["events"]) == items
                metrics = client.get("/metrics").text
        assert set(re.findall(r'process_resident_memory_bytes\{pid="(\d+)"', metrics)) == {str(pid) for pid in pids}
        samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
        applied = [s.value for s in samples if (s.name, s.labels) == ("recsys_events_total", {"outcome": "applied"})]
        assert applied == [len(items)]  # of both workers together
        assert service.stop(signal.SIGINT) == 0
    assert failed == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert all(json.loads(line)["level"] for line in service.lines if line.startswith("{"))
    assert KEY not in "".join(service.lines)
    assert sorted(event.item_id for event in EventLog(root / DATASET / "events").read()) == items
    config = world.settings.feature_store
    store = FeatureStore(replace(config, home=replace(config.home, root=root / DATASET)))
    stored = store.online_state(777)
    assert stored is not None
    assert stored[0].n_events == len(items)
    assert store.catch_up() == 0
    store.close()


def sockets(pid: int) -> int:
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += str(entry.readlink()).startswith("socket:")
    return count


def test_kept_connections_are_even_also_after_some_have_ended(root: Path) -> None:
    """As the server itself counts them."""
    with served(root, "--workers", "2") as service, contextlib.ExitStack() as all_clients:
        service.wait_ready(2)
        pids = sorted(children(service.process.pid))
        before = {pid: sockets(pid) for pid in pids}
        clients: dict[int, list[httpx.Client]] = {pid: [] for pid in pids}

        def comes() -> None:
            had = {pid: sockets(pid) for pid in pids}
            client = all_clients.enter_context(service.client())
            assert client.get("/healthz").status_code == 200
            (met,) = [pid for pid in pids if sockets(pid) > had[pid]]
            clients[met].append(client)

        for _ in range(6):
            comes()
        first, second = pids
        assert (len(clients[first]), len(clients[second])) == (3, 3)
        while clients[first]:
            clients[first].pop().close()
        until = time.monotonic() + 30
        while sockets(first) > before[first]:
            assert time.monotonic() < until
            time.sleep(0.02)
        for _ in range(3):
            comes()
        assert (len(clients[first]), len(clients[second])) == (3, 3)
        all_clients.close()
        assert service.stop() == 0


def test_a_worker_that_dies_is_replaced_and_one_without_its_parent_stops(root: Path) -> None:
    with served(root, "--workers", "2") as service:
        service.wait_ready(2)
        first = children(service.process.pid)
        os.kill(min(first), signal.SIGKILL)
        service.wait_ready(3)
        second = children(service.process.pid)
        assert len(second) == 2
        assert max(first) in second
        assert min(first) not in second
        assert any("ended with exit code -9" in line for line in service.lines)
        with service.client() as client:
            assert client.get("/v1/users/3/recommendations").status_code == 200
        service.process.kill()
        service.process.wait()
        until = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in second):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_while_the_store_is_away_a_dead_worker_does_not_take_the_others_along(root: Path) -> None:
    """Its successors cannot start, and try again more and more seldom. None of them takes a connection meanwhile."""
    with served(root, "--workers", "2") as service:
        service.wait_ready(2)
        first = children(service.process.pid)
        with store_away(root / DATASET / "feast" / "online.db"):
            os.kill(min(first), signal.SIGKILL)
            answers = 0
            while not any("1 worker(s) go on; another is tried in 2 s" in line for line in service.lines):
                assert service.process.poll() is None, "".join(service.lines)[-4000:]
                with service.client() as client:
                    response = client.get("/v1/users/3/recommendations")
                assert response.status_code == 200
                assert "user_state" in response.json()["degraded"]
                answers += 1
            assert answers > 20
            assert any("1 worker(s) go on; another is tried in 1 s" in line for line in service.lines)
            assert any("ended with exit code 3" in line for line in service.lines)
        service.wait_ready(3)
        assert max(first) in children(service.process.pid)
        assert len(children(service.process.pid)) == 2
        assert service.stop() == 0
    assert "Traceback" not in "".join(service.lines)


def test_workers_that_cannot_load_end_the_service(root: Path) -> None:
    (root / "empty" / "data").mkdir(parents=True, exist_ok=True)
    with served(root, "--workers", "2", dataset="empty") as service:
        assert service.process.wait(START_LIMIT_S) == 2
    said = "".join(service.lines)
    assert "recsys-empty" in said
    assert "A worker could not load its model" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("workers", [1, 2])
def test_stopping_under_load_drops_no_accepted_request(root: Path, workers: int) -> None:
    """Clients that keep their connection see answers until the service tells them to close; none is cut off."""
    with served(root, "--workers", str(workers)) as service:
        service.wait_ready(workers)
        statuses: list[int] = []
        broken: list[str] = []
        told_to_stop = threading.Event()

        def ask(user_id: int) -> None:
            with service.client() as client:
                while True:
                    try:
                        response = client.get(f"/v1/users/{user_id}/recommendations")
                    except httpx.ConnectError:
                        return  # the door is shut
                    except httpx.HTTPError as error:
                        broken.append(repr(error))
                        return
                    statuses.append(response.status_code)
                    if told_to_stop.is_set() and response.headers.get("connection") == "close":
                        return

        asking = [threading.Thread(target=ask, args=(user_id,)) for user_id in range(1, 7)]
        for thread in asking:
            thread.start()
        while len(statuses) < 60:
            time.sleep(0.01)
        told_to_stop.set()
        assert service.stop() == 0
        for thread in asking:
            thread.join()
    assert broken == []
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 50
    assert any("service stopped" in line for line in service.lines)


def test_ctrl_c_stops_before_it_is_ready(root: Path) -> None:
    """Limits hold by then; nobody gets a rate of his own by a header that anybody can write."""
    with served(root, "--rate", "0.001", "--burst", "2") as service:
        service.wait_said("Application startup complete")
        with service.client() as client:
            forwarded = [{"X-Forwarded-For": f"192.0.2.{n}"} for n in range(3)]
            assert client.get("/v1/nothing", headers=forwarded[0]).status_code == 404
            assert client.get("/v1/nothing", headers=forwarded[1]).status_code == 404
            assert client.get("/v1/nothing", headers=forwarded[2]).status_code == 429
        assert service.stop(signal.SIGINT) == 0
    assert "Traceback" not in "".join(service.lines)


def test_an_address_beyond_this_machine_needs_a_key(root: Path) -> None:
    with served(root, "--host", "0.0.0.0") as service:
        assert service.process.wait(START_LIMIT_S) == 2
    assert "RECSYS_API_KEY" in "".join(service.lines)
    assert "Traceback" not in "".join(service.lines)
