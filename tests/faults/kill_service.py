"""kill -9 of the service at random moments while events come in, again and again: what is kept.

    python -m tests.faults.kill_service --times 200
    python -m tests.faults.kill_service --times 200 --events-url postgresql+psycopg://user@host/database

Two workers share one event table. One round: start both; compare every user's history and list, as each worker answers
them, with the table; send again, under their ids, the events that got no answer before; send new ones over several
connections, single and in batches, and kill one worker or both at a random moment; compare what is left.

Workers are forked from a process that has done the imports and built the data, because that takes longer than all the
rest. Each has the app and the server of `recsys serve`, and a port of its own. The rows of the online store are in
memory: they never change here.
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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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


@dataclass(frozen=True)
class Figures:
    """in_doubt: events that were sent and not answered."""

    kills: int
    acknowledged: int
    in_doubt: int
    stored: int
    lost: int
    twice: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.seconds:.0f} s: {self.acknowledged} events acknowledged, {self.lost} lost, "
            f"{self.twice} twice; {self.in_doubt} in doubt and sent again; {self.stored} rows in the end"
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
        if self.rng.random() < 0.5:  # older than what is stored, or of the same second
            body["timestamp"] = 1_040_000_000 + self.rng.randrange(2_000)
        if self.rng.random() < 0.1:
            return {**body, "kind": "watch"}
        return {**body, "rating": self.rng.randint(1, 10) / 2}

    def send(self, url: str, requests: Iterable[list[Body]]) -> None:
        """Raises httpx.TransportError where no answer comes; that request is in doubt then."""
        with client_of(url) as client:
            for request in requests:
                self.doubt.append(request)
                body = request[0] if len(request) == 1 else {"events": request}
                response = client.post("/v1/events", json=body)
                assert response.status_code == 201, response.text
                self.doubt.pop()
                self.acknowledged |= {event["event_id"] for event in request}

    def send_until(self, url: str, stopped: threading.Event) -> None:
        with suppress(httpx.TransportError):
            self.send(url, iter(lambda: None if stopped.is_set() else self.new_request(), None))

    def send_again(self, url: str) -> None:
        doubt, self.doubt = self.doubt, []
        self.send(url, doubt)


def client_of(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, trust_env=False, timeout=30)


class Stored:
    """What the table has, read forward only: nobody writes while it is read."""

    def __init__(self, table: EventTable, base: dict[int, UserState]) -> None:
        self._table, self._through, self._base = table, 0, base
        self.times: Counter[str] = Counter()
        self._ratings: dict[int, list[Event]] = {user: [] for user in USERS}

    def check(self, urls: Iterable[str], senders: list[Sender]) -> None:
        """No acknowledged event is missing, and every worker has all of the table in its states and lists."""
        through = self._table.safe_seq()  # what a killed worker had sent to a server may still be committed
        for event in self._table.read(after=self._through, through=through):
            self._through = event.seq
            self.times[event.event_id] += 1
            if event.kind == RATING_KIND:
                assert event.value is not None
                self._ratings[event.user_id].append(Event(event.item_id, event.value, event.occurred_at))
        lost = [key for sender in senders for key in sender.acknowledged if not self.times[key]]
        assert not lost, f"acknowledged and not in the table: {lost[:10]}"
        for url in urls:
            with client_of(url) as client:
                for user in USERS:
                    state = fold(self._base.get(user, UserState(user)), self._ratings[user])
                    history = client.get(f"/v1/users/{user}/history", params={"n": HISTORY_LENGTH}).json()
                    events = [(event["item_id"], event["rating"], event["timestamp"]) for event in history["events"]]
                    assert history["n_events"] == state.n_events, f"user {user}"
                    assert events == list(zip(state.item_ids, state.ratings, state.timestamps, strict=True))[::-1]
                    answer = client.get(f"/v1/users/{user}/recommendations", params={"k": N_ITEMS}).json()
                    assert answer["degraded"] == []
                    assert not {item["item_id"] for item in answer["items"]} & set(state.seen_item_ids), f"user {user}"


def run(root: Path, table: EventTable, times: int, seed: int = 1) -> Figures:
    """Kill `times` times."""
    began, in_doubt, rng = time.monotonic(), 0, random.Random(seed)
    senders = [Sender(n, random.Random(f"{seed}-{n}")) for n in range(SENDERS)]
    with _starter(root, table.url) as (start, base):
        stored = Stored(table, base)
        for life in range(times + 1):
            workers = start()
            stored.check(workers.values(), senders)
            for sender in senders:
                sender.send_again(rng.choice(list(workers.values())))
            killed: list[int] = []
            if life < times:
                killed = rng.sample(sorted(workers), rng.choice([1, 1, WORKERS]))
                _kill_under_load(workers, killed, senders, rng)
                in_doubt += sum(len(request) for sender in senders for request in sender.doubt)
            left = {pid: url for pid, url in workers.items() if pid not in killed}
            stored.check(left.values(), senders)
            _kill(list(left))
    acknowledged = {key for sender in senders for key in sender.acknowledged}
    assert set(stored.times) <= acknowledged
    return Figures(
        kills=times,
        acknowledged=len(acknowledged),
        in_doubt=in_doubt,
        stored=stored.times.total(),
        lost=len(acknowledged - set(stored.times)),
        twice=sum(n > 1 for n in stored.times.values()),
        seconds=time.monotonic() - began,
    )


def _kill_under_load(workers: dict[int, str], killed: list[int], senders: list[Sender], rng: random.Random) -> None:
    stopped, urls = threading.Event(), list(workers.values())
    with ThreadPoolExecutor(SENDERS) as threads:
        sending = [threads.submit(sender.send_until, urls[n % WORKERS], stopped) for n, sender in enumerate(senders)]
        time.sleep(rng.uniform(0.01, LONGEST_S))
        _kill(killed)
        time.sleep(rng.uniform(0.0, 0.1))
        stopped.set()
        for each in sending:
            each.result()


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
        waiting = list(workers.values())
        while waiting:
            assert time.monotonic() < until, "a worker did not become ready"
            with suppress(httpx.TransportError):
                assert httpx.get(f"{waiting[-1]}/readyz", trust_env=False, timeout=START_S).status_code == 200
                waiting.pop()
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
        figures = run(Path(folder) / "home", EventTable(url), options.times, options.seed)
        print(figures)
        sys.exit(figures.lost + figures.twice > 0)


if __name__ == "__main__":
    main()
