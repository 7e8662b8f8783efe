"""kill -9 of the running service at random moments while events come in, again and again: what is kept.

Stage: tests. In: a home with a trained world, a number of kills. Out: `Figures`; AssertionError for a lost or doubled
event. Absent: a power cut, which takes the page cache along; that `fsync` comes before an answer is another test's.

    python -m tests.faults.kill_service --times 200

One round: start the service; hold every user's history, as it answers it, against the log's set of events; send again,
under their ids, the events that got no answer before; then send new ones from several connections at once, single and
in batches, until the kill. In the end everything is compared once more, in the store itself.

The service is the one of `recsys serve`, in a process of its own. It is forked from a process that has done the imports
and nothing else, because they take longer than all the rest; that process has no model, no store and no log.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.event_log import LoggedEvent, parse
from recsys.features.state import Event, UserState
from recsys.features.state_merge import state_from_events

SENDERS = 4
USERS = (1, 2, 3, 4, 5, 6, 7, 8, 501, 502, 503, 504)  # of the data set, and strangers
LONGEST_S = 0.8  # of a life under load
START_S = 120.0
Body = dict[str, Any]


@dataclass
class Figures:
    """doubt: events that were sent and not answered; of these, those that were in the log all the same; torn: how
    often the log ended in the middle of a line."""

    kills: int = 0
    acknowledged: int = 0
    in_doubt: int = 0
    in_doubt_logged: int = 0
    torn: int = 0
    lines: int = 0
    lost: int = 0
    twice: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.seconds:.0f} s: {self.acknowledged} events acknowledged, {self.lost} lost, "
            f"{self.twice} twice; {self.in_doubt} in doubt, of which {self.in_doubt_logged} were in the log; "
            f"{self.torn} torn ends; {self.lines} lines in the end"
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
        body: Body = {"user_id": self.rng.choice(USERS), "item_id": self.rng.randint(1, 80)}
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

    def until_killed(self, url: str) -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            try:
                while True:
                    self.send(client, self.new_request())
            except httpx.TransportError:
                pass

    def send_again(self, client: httpx.Client) -> None:
        doubt, self.doubt = self.doubt, []
        for request in doubt:
            self.send(client, request)


class Log:
    """What is in the log, read forward only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, int] = {}
        self.times: Counter[str] = Counter()
        self.events: dict[int, list[Event]] = {user: [] for user in USERS}
        self.torn = 0

    def update(self) -> None:
        for path in sorted(self._folder.glob("events-*.jsonl")):
            content = path.read_bytes()[self._read.get(path.name, 0) :]
            whole = content[: content.rfind(b"\n") + 1]
            self.torn += len(whole) < len(content)
            self._read[path.name] = self._read.get(path.name, 0) + len(whole)
            for line in whole.splitlines(keepends=True):
                event = parse(line)
                assert event is not None, line
                self._add(event)

    def _add(self, event: LoggedEvent) -> None:
        self.times[event.event_id] += 1
        if event.rating is not None:
            self.events[event.user_id].append(Event(event.item_id, event.rating, event.timestamp))


def run(root: Path, dataset: str, times: int, seed: int = 1) -> Figures:
    """Kill `times` times. The home's events and store are changed."""
    started = time.monotonic()
    home = root / dataset
    rng = random.Random(seed)
    senders = [Sender(n, random.Random(f"{seed}-{n}")) for n in range(SENDERS)]
    log, figures = Log(home / "events"), Figures()
    known = _data_set(home)
    with _starter(root, dataset) as start:
        for _ in range(times):
            pid, url = start()
            _check(url, log, known)
            _send_again(url, senders, log, figures)
            threads = [threading.Thread(target=sender.until_killed, args=(url,)) for sender in senders]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.01, LONGEST_S))
            os.kill(pid, signal.SIGKILL)
            for thread in threads:
                thread.join()
            _wait_gone(pid)
            log.update()
            figures.kills += 1
            figures.in_doubt += sum(len(request) for sender in senders for request in sender.doubt)
            figures.lost += sum(log.times[key] == 0 for sender in senders for key in sender.acknowledged)
            assert figures.lost == 0, f"acknowledged events are not in the log after kill {figures.kills}"
        pid, url = start()
        _check(url, log, known)
        _send_again(url, senders, log, figures)
        log.update()
        os.kill(pid, signal.SIGKILL)
        _wait_gone(pid)
    figures.acknowledged = sum(len(sender.acknowledged) for sender in senders)
    figures.lines, figures.torn = log.times.total(), log.torn
    figures.twice = sum(n > 1 for n in log.times.values())
    assert figures.twice == 0, [key for key, n in log.times.items() if n > 1]
    assert set(log.times) == {key for sender in senders for key in sender.acknowledged}
    _check_store(root, dataset, log, known)
    figures.seconds = time.monotonic() - started
    return figures


def _data_set(home: Path) -> dict[int, list[Event]]:
    import pandas as pd

    events = pd.read_parquet(home / "data" / "events.parquet")
    return {
        user: [
            Event(int(i), float(r), int(t))
            for i, r, t in events.loc[events[USER_ID] == user, [ITEM_ID, RATING, TIMESTAMP]].itertuples(index=False)
        ]
        for user in USERS
    }


def _send_again(url: str, senders: list[Sender], log: Log, figures: Figures) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        for sender in senders:
            doubtful = [event["event_id"] for request in sender.doubt for event in request]
            figures.in_doubt_logged += sum(log.times[key] > 0 for key in doubtful)
            sender.send_again(client)


def _check(url: str, log: Log, known: dict[int, list[Event]]) -> None:
    """The service has every event of the log in its states, once; nobody sends meanwhile."""
    log.update()
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        for user in USERS:
            state, _ = state_from_events(UserState(user), known[user] + log.events[user])
            told = client.get(f"/v1/users/{user}/history", params={"n": 64}).json()
            window = list(zip(state.item_ids, state.ratings, state.timestamps, strict=True))
            found = [(event["item_id"], event["rating"], event["timestamp"]) for event in told["events"]]
            assert told["n_events"] == state.n_events, f"user {user}: {told['n_events']} events, not {state.n_events}"
            assert found == window[::-1], f"the window of user {user} is not that of the set"


def _check_store(root: Path, dataset: str, log: Log, known: dict[int, list[Event]]) -> None:
    """The same in the store, with sums and seen items."""
    from recsys.feature_store import FeatureStore
    from recsys.settings import Settings
    from recsys.workspace import Workspace

    store = FeatureStore(Settings(home=root).feature_store(Workspace(root).dataset(dataset)))
    for user in USERS:
        found = store.online_state(user)
        assert found is not None
        state, seen = state_from_events(found[0], known[user] + log.events[user])
        assert found[0] == state
        assert sorted(set(found[1].tolist())) == seen.tolist()
    store.close()


# ---- processes


@contextmanager
def _starter(root: Path, dataset: str) -> Iterator[Any]:
    """A function that starts the service and returns its process id and address once it is ready."""
    command = [sys.executable, "-m", "tests.faults.kill_service", "--fork-services", str(root), dataset]
    cwd = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def start() -> tuple[int, str]:
        stdin.write("start\n")
        stdin.flush()
        pid, port = json.loads(stdout.readline())
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + START_S
        with httpx.Client(base_url=url, trust_env=False, timeout=START_S) as client:
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < until, "the service did not become ready"
                time.sleep(0.02)
        return pid, url

    try:
        yield start
    finally:
        stdin.close()
        process.wait(START_S)
        stdout.close()


def _wait_gone(pid: int) -> None:
    until = time.monotonic() + START_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until
        time.sleep(0.005)


def _fork_services(root: Path, dataset: str) -> None:
    """For each line on stdin a new service; its process id and port on stdout. Ends with the last service killed."""
    import lightgbm  # noqa: F401
    import mlflow  # noqa: F401

    from recsys.feature_store.importing import import_feast
    from recsys.settings import Settings
    from recsys.workspace import Workspace
    from serving.settings import ServiceSettings
    from serving.workers import Start, serve

    import_feast()
    settings = ServiceSettings.build(
        Settings(home=root), Workspace(root).dataset(dataset), budget_ms=60_000.0, predictions_share=0.0
    )
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that what was killed is gone at once
    pid = 0
    for _ in sys.stdin:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.dup2(2, 1)
                start = Start(settings, log_level="warning")
                start.configure_logs()
                serve(start, listening)
                os._exit(0)
            print(json.dumps([pid, listening.getsockname()[1]]), flush=True)
    if pid and Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description="kill -9 of the service at random moments under load")
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fork-services", nargs=2, metavar=("HOME", "DATASET"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.fork_services:
        _fork_services(Path(asked.fork_services[0]), asked.fork_services[1])
        return
    from tests.serving.serving_world import DATASET, build

    with tempfile.TemporaryDirectory(prefix="recsys-kills-") as folder:
        build(Path(folder))
        print(run(Path(folder), DATASET, asked.times, asked.seed))


if __name__ == "__main__":
    main()
