"""kill -9 of the service at random moments while events come in, again and again: what is kept.

    python -m tests.faults.kill_service --times 200
    python -m tests.faults.kill_service --times 200 --events-url postgresql+psycopg://user@host/database

Two workers share one event table. One round: start both; hold every user's history, as each of them answers it, against
the table; send again, under their ids, the events that got no answer before; send new ones over several connections,
single and in batches, and kill one worker or both at a random moment. Whatever the table has then, the worker that is
left knows, and so do its lists.

Workers are forked from a process that has done the imports and built the data, because that takes longer than all the
rest. Each has the app and the server of `recsys serve`, and a port of its own, so that a test can choose whom it asks.
The rows of the online store are in memory: they never change here.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from recsys.events import RATING_KIND, EventTable, sqlite_url
from recsys.features.state import HISTORY_LENGTH, Event, UserState, fold

WORKERS, SENDERS = 2, 4
USERS = (1, 2, 3, 4, 5, 6, 501, 502, 503, 504)  # of the data set, and new ones
N_ITEMS = 80
LONGEST_S = 0.8  # of a life under load
START_S = 120.0
Body = dict[str, Any]


@dataclass
class Figures:
    """doubt: events that were sent and not answered; of these, those that were stored all the same."""

    kills: int = 0
    acknowledged: int = 0
    in_doubt: int = 0
    in_doubt_stored: int = 0
    stored: int = 0
    lost: int = 0
    twice: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.seconds:.0f} s: {self.acknowledged} events acknowledged, {self.lost} lost, "
            f"{self.twice} twice; {self.in_doubt} in doubt, of which {self.in_doubt_stored} were stored; "
            f"{self.stored} rows in the end"
        )


@dataclass
class Sender:
    """One connection's events. `doubt`: requests without an answer."""

    number: int
    rng: random.Random
    acknowledged: set[str] = field(default_factory=set)
    doubt: list[list[Body]] = field(default_factory=list)
    made: int = 0

    def new_request(self) -> list[Body]:
        return [self._event() for _ in range(1 if self.rng.random() < 0.8 else self.rng.randint(2, 200))]

    def _event(self) -> Body:
        self.made += 1
        body: Body = {"user_id": self.rng.choice(USERS), "item_id": self.rng.randint(1, N_ITEMS)}
        body["event_id"] = f"{self.number}-{self.made}"
        if self.rng.random() < 0.5:  # older than what is known, or of the same second
            body["timestamp"] = 1_040_000_000 + self.rng.randrange(2_000)
        if self.rng.random() < 0.1:
            return {**body, "kind": "watch"}
        return {**body, "rating": self.rng.randint(1, 10) / 2}

    def send(self, client: httpx.Client, request: list[Body]) -> None:
        """Raises httpx.TransportError where no answer comes; the request is in doubt then."""
        body = request[0] if len(request) == 1 else {"events": request}
        try:
            response = client.post("/v1/events", json=body)
        except httpx.TransportError:
            self.doubt.append(request)
            raise
        assert response.status_code == 201, response.text
        self.acknowledged |= {event["event_id"] for event in request}

    def until(self, url: str, stopped: threading.Event) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            try:
                while not stopped.is_set():
                    self.send(client, self.new_request())
            except httpx.TransportError:
                pass

    def send_again(self, url: str) -> None:
        doubt, self.doubt = self.doubt, []
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            for request in doubt:
                self.send(client, request)


class Stored:
    """What the table has, read forward only: nobody writes while it is read."""

    def __init__(self, table: EventTable) -> None:
        self._table, self._through = table, 0
        self.times: Counter[str] = Counter()
        self.ratings: dict[int, list[Event]] = {user: [] for user in USERS}

    def update(self) -> None:
        through = self._table.safe_seq()  # what a killed worker had sent to a server may still be committed
        for event in self._table.read(after=self._through, through=through):
            self._through = event.seq
            self.times[event.event_id] += 1
            if event.kind == RATING_KIND:
                assert event.value is not None
                self.ratings[event.user_id].append(Event(event.item_id, event.value, event.occurred_at))


def run(root: Path, table: EventTable, times: int, seed: int = 1) -> Figures:
    """Kill `times` times."""
    began = time.monotonic()
    rng = random.Random(seed)
    senders = [Sender(n, random.Random(f"{seed}-{n}")) for n in range(SENDERS)]
    figures, stored = Figures(), Stored(table)
    with _starter(root, table.url) as (start, base):
        for _ in range(times):
            workers = start()
            _check(list(workers.values()), stored, base, senders)
            _send_again(list(workers.values()), senders, stored, figures, rng)
            stopped = threading.Event()
            urls = list(workers.values())
            threads = [
                threading.Thread(target=sender.until, args=(urls[n % WORKERS], stopped))
                for n, sender in enumerate(senders)
            ]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.01, LONGEST_S))
            killed = rng.sample(sorted(workers), rng.choice([1, 1, WORKERS]))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            time.sleep(rng.uniform(0.0, 0.1))
            stopped.set()
            for thread in threads:
                thread.join()
            _wait_gone(killed)
            figures.kills += 1
            figures.in_doubt += sum(len(request) for sender in senders for request in sender.doubt)
            left = [url for pid, url in workers.items() if pid not in killed]
            _check(left, stored, base, senders)
            _kill([pid for pid in workers if pid not in killed])
        workers = start()
        _send_again(list(workers.values()), senders, stored, figures, rng)
        _check(list(workers.values()), stored, base, senders)
        _kill(list(workers))
    figures.acknowledged = sum(len(sender.acknowledged) for sender in senders)
    figures.stored = stored.times.total()
    figures.twice = sum(n > 1 for n in stored.times.values())
    assert figures.twice == 0, [key for key, n in stored.times.items() if n > 1]
    assert set(stored.times) == {key for sender in senders for key in sender.acknowledged}
    figures.seconds = time.monotonic() - began
    return figures


def _send_again(urls: list[str], senders: list[Sender], stored: Stored, figures: Figures, rng: random.Random) -> None:
    for sender in senders:
        doubtful = [event["event_id"] for request in sender.doubt for event in request]
        figures.in_doubt_stored += sum(stored.times[key] > 0 for key in doubtful)
        sender.send_again(rng.choice(urls))


def _check(urls: list[str], stored: Stored, base: dict[int, UserState], senders: list[Sender]) -> None:
    """No acknowledged event is missing, and every worker has all of the table in its states; nobody sends meanwhile."""
    stored.update()
    lost = [key for sender in senders for key in sender.acknowledged if not stored.times[key]]
    assert not lost, f"acknowledged and not in the table: {lost[:10]}"
    for url in urls:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            for user in USERS:
                state = fold(base.get(user, UserState(user)), stored.ratings[user])
                history = client.get(f"/v1/users/{user}/history", params={"n": HISTORY_LENGTH}).json()
                found = [(event["item_id"], event["rating"], event["timestamp"]) for event in history["events"]]
                assert history["n_events"] == state.n_events, f"user {user}"
                assert found == list(zip(state.item_ids, state.ratings, state.timestamps, strict=True))[::-1]
                answer = client.get(f"/v1/users/{user}/recommendations", params={"k": N_ITEMS}).json()
                assert answer["degraded"] == []
                assert not {item["item_id"] for item in answer["items"]} & set(state.seen_item_ids), f"user {user}"


# -- processes ----------------------------------------------------------------------------------------------------


@contextmanager
def _starter(root: Path, url: sa.URL) -> Iterator[tuple[Callable[[], dict[int, str]], dict[int, UserState]]]:
    """A function that starts the workers and returns their addresses by process id once they are ready; and the states
    of the data set."""
    address = url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.faults.kill_service", "--fork-workers", str(root), address]
    cwd = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    base = {
        int(user): UserState(**{name: tuple(v) if isinstance(v, list) else v for name, v in state.items()})
        for user, state in json.loads(stdout.readline()).items()
    }

    def start() -> dict[int, str]:
        stdin.write("start\n")
        stdin.flush()
        workers = {pid: f"http://127.0.0.1:{port}" for pid, port in json.loads(stdout.readline())}
        until = time.monotonic() + START_S
        for address in workers.values():
            while True:
                try:
                    assert httpx.get(f"{address}/readyz", trust_env=False, timeout=START_S).status_code == 200
                    break
                except httpx.TransportError:
                    assert time.monotonic() < until, "a worker did not become ready"
                    time.sleep(0.02)
        return workers

    try:
        yield start, base
    finally:
        stdin.close()
        process.wait(START_S)
        stdout.close()


def _kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    _wait_gone(pids)


def _wait_gone(pids: list[int]) -> None:
    until = time.monotonic() + START_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.005)


def _fork_workers(root: Path, url: str) -> None:
    """The states of the data set on stdout; then for each line on stdin WORKERS new workers, their process ids and
    ports on stdout."""
    import lightgbm  # noqa: F401

    import serving.app  # noqa: F401
    from tests.serving.serving_world import build

    world = build(root, feature_store=False)
    print(json.dumps({user: vars(world.states[user]) for user in USERS if user in world.states}), flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that what was killed is gone at once
    for _ in sys.stdin:
        started = []
        for _ in range(WORKERS):
            with socket.create_server(("127.0.0.1", 0)) as listening:
                pid = os.fork()
                if pid == 0:
                    _serve(world, url, listening)
                    os._exit(0)
                started.append([pid, listening.getsockname()[1]])
        print(json.dumps(started), flush=True)


def _serve(world: Any, url: str, listening: socket.socket) -> None:
    import uvicorn

    from serving.app import create_app, uvicorn_options
    from serving.model_lifecycle import served_model
    from serving.model_lifecycle.champion import Champion
    from serving.model_lifecycle.served_model import ServedModel, registry_of
    from serving.observability.metrics import Metrics
    from serving.recommending.service import Service
    from tests.serving.in_memory_store import InMemoryStore

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(2, 1)
    served_model.try_bundle = lambda _: None  # the subject is the table; this takes seconds
    changes = {"events": EventTable(sa.make_url(url)), "predictions_share": 0.0, "reload_s": 0.0}
    settings = world.settings.model_copy(update=changes)
    store: Any = InMemoryStore(world.states, world.timeline)
    registry, metrics = registry_of(settings), Metrics()
    model = ServedModel.load(settings, store, registry, registry.resolve("champion"), int(time.time()))
    service = Service(settings, Champion(settings, store, metrics, model), store, metrics)
    options = uvicorn_options(settings) | {"workers": 1}
    uvicorn.Server(uvicorn.Config(create_app(settings, service), **options)).run(sockets=[listening])


def main() -> None:
    parser = argparse.ArgumentParser(description="kill -9 of the service at random moments under load")
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events-url", help="of an empty event table; default: a new SQLite file")
    parser.add_argument("--fork-workers", nargs=2, metavar=("HOME", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fork_workers:
        _fork_workers(Path(options.fork_workers[0]), options.fork_workers[1])
        return
    with tempfile.TemporaryDirectory(prefix="recsys-kills-") as folder:
        url = sa.make_url(options.events_url) if options.events_url else sqlite_url(Path(folder) / "events.db")
        print(run(Path(folder) / "home", EventTable(url), options.times, options.seed))


if __name__ == "__main__":
    main()
