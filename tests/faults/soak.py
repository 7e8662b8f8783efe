"""Minutes of load with all that may happen to a service, and what must hold throughout. Run by hand:

    python -m tests.faults.soak --home .recsys --dataset ml-100k --minutes 10 --reloads 20 --rate 100

In a copy of the home, whose registry holds the champion twice, an open loop asks `--rate` times a second. Meanwhile one
version and the other are promoted in turn, the online store is taken away for a while, and a hundredth of the requests
is malformed. The exit code is 1 unless every answer is right, nothing else comes but shed load (503), what is malformed
is refused, each promotion is seen, states are read again soon after the store is back, and memory is level.
"""

import argparse
import asyncio
import json
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from recsys.atomic_io import read_json, write_json
from recsys.columns import CHAMPION, ITEM_ID, USER_ID
from recsys.feature_store import FeatureStore
from recsys.registry import Registry, model_name_for
from recsys.settings import read_settings
from recsys.workspace import DatasetWorkspace, Workspace
from serving.benchmark.load import Pool, Response, poisson_arrivals
from serving.benchmark.service import recommendation_path, running, sample_of_users

K, TIMEOUT_S, MALFORMED_SHARE, LEVEL = 10, 15.0, 0.01, 1.05  # LEVEL: what memory may grow to
RELOAD_S, STORE_BACK_S, STORE_LATE = 60.0, 5.0, 0.01  # by then a promotion, a store is seen; but for so many answers
OVERSIZE = b" " * 2_000_000
MALFORMED = {  # what is wrong: method, path, body, statuses that say so
    "bad JSON": ("POST", "/v1/recommendations", b'{"history": [', {400, 422}),
    "wrong type in the body": ("POST", "/v1/recommendations", b'{"history": "none"}', {422}),
    "huge k": ("GET", "/v1/users/1/recommendations?k=1000000000000", b"", {422}),
    "wrong type in the path": ("GET", "/v1/users/abc/recommendations", b"", {404, 422}),
    "bad path": ("GET", "/v1/%00nothing", b"", {404}),
    "oversize body": ("POST", "/v1/recommendations", OVERSIZE, {413}),
}


@dataclass
class Soak:
    """What came back, and what was done meanwhile; moments in seconds since the start."""

    seen: dict[int, frozenset[int]]
    versions: list[int]
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[tuple[str, str]] = field(default_factory=list)  # check, what
    unreadable: list[float] = field(default_factory=list)  # answers made without the user's state
    answered: list[float] = field(default_factory=list)
    outage: tuple[float, float] = (0.0, 0.0)
    reloads: list[float] = field(default_factory=list)  # seconds until each promotion was seen
    memory_mib: list[tuple[float, float]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        return time.monotonic() - self.begun

    def check(self, user_id: int, response: Response) -> None:
        """Note all that is not right with the answer to a well-formed request."""
        self.statuses[response.status] += 1
        if response.status != 200:
            if response.status != 503:
                self.wrong.append(("errors", f"user {user_id}: {response.status} {response.body[:100]!r}"))
            return
        body = json.loads(response.body)
        items, degraded = [item["item_id"] for item in body["items"]], body["degraded"]
        self.answered.append(self.now())
        if "user_state" in degraded:
            self.unreadable.append(self.now())
        elif again := self.seen[user_id].intersection(items):
            self.wrong.append(("answers", f"user {user_id} has rated {sorted(again)[:3]}; degraded {degraded}"))
        if body["user_id"] != user_id or len(set(items)) != K or body["model"]["version"] not in self.versions:
            self.wrong.append(("answers", f"user {user_id}: {body['user_id']}, {items}, {body['model']}"))

    def verdicts(self, seconds: float, reloads: int) -> dict[str, tuple[bool, str]]:
        """Whether each check holds, and the figures."""
        kinds = Counter(kind for kind, _ in self.wrong)
        back = self.outage[1] + STORE_BACK_S
        late = sum(at > back for at in self.unreadable) / max(sum(at > back for at in self.answered), 1)
        warm, end = (
            statistics.median([mib for at, mib in self.memory_mib if low * seconds <= at < high * seconds] or [0.0])
            for low, high in ((0.15, 0.3), (0.9, 2.0))
        )
        away = f"away for {self.outage[1] - self.outage[0]:.1f} s; {len(self.unreadable)} answers without the state"
        return {
            "answers": (
                bool(self.answered) and not kinds["answers"],
                f"{len(self.answered)}; {kinds['answers']} wrong",
            ),
            "errors": (not kinds["errors"], f"{dict(self.statuses)}; {kinds['errors']} wrong"),
            "malformed": (not kinds["malformed"], f"{kinds['malformed']} not refused as they must be"),
            "reloads": (len(self.reloads) == reloads, f"{len(self.reloads)} of {reloads} seen"),
            "store": (self.outage[1] > 0 and late <= STORE_LATE, f"{away}, {late:.2%} of those after it was back"),
            "memory": (0 < end <= LEVEL * warm, f"{warm:.0f} MiB after the warm-up, {end:.0f} at the end"),
        }


async def ask_all(soak: Soak, url: str, rate: float, seconds: float, happenings: Sequence[Callable[[], None]]) -> None:
    """Ask in an open loop while each of the `happenings` runs in a thread."""
    rng, users = random.Random(7), list(soak.seen)

    async def ask_for(user_id: int) -> None:
        try:
            response = await pool.ask(recommendation_path(user_id), TIMEOUT_S)
        except OSError as error:
            soak.wrong.append(("errors", f"user {user_id}: no answer, {error!r}"))
            return
        soak.check(user_id, response)

    async def ask_badly(what: str) -> None:
        method, path, body, statuses = MALFORMED[what]
        with closing(Pool(url)) as alone:  # the service may close the connection
            try:
                response = await alone.ask(path, TIMEOUT_S, method=method, body=body)
            except OSError as error:
                if body is not OVERSIZE or isinstance(error, TimeoutError):  # that one may be cut short
                    soak.wrong.append(("malformed", f"{what}: no answer, {error!r}"))
                return
        if response.status not in {*statuses, 503}:
            kind = "errors" if response.status >= 500 else "malformed"
            soak.wrong.append((kind, f"{what}: {response.status} {response.body[:100]!r}"))

    with closing(Pool(url)) as pool:
        async with asyncio.TaskGroup() as tasks:
            for happening in happenings:
                tasks.create_task(asyncio.to_thread(happening))
            for at in poisson_arrivals(rate, seconds, seed=7):
                await asyncio.sleep(soak.begun + at - time.monotonic())
                malformed = rng.random() < MALFORMED_SHARE
                asking = ask_badly(rng.choice(list(MALFORMED))) if malformed else ask_for(rng.choice(users))
                tasks.create_task(asking)


def promote(soak: Soak, registry: Registry, url: str, seconds: float, reloads: int) -> None:
    """The versions in turn, evenly spread; each is waited for."""
    for number in range(reloads):
        time.sleep(max(seconds * (number + 1) / (reloads + 1) - soak.now(), 0.0))
        version, since = soak.versions[(number + 1) % 2], time.monotonic()
        registry.promote(version)
        while time.monotonic() < since + RELOAD_S:
            with urllib.request.urlopen(f"{url}/v1/model", timeout=TIMEOUT_S) as response:
                if json.load(response)["version"] == version:
                    soak.reloads.append(time.monotonic() - since)
                    break
            time.sleep(0.2)


def take_store_away(soak: Soak, online_file: Path, seconds: float) -> None:
    """For a while every read and write of the SQLite store fails. A file renamed or emptied would still be read by who
    holds it open; tables that are renamed in one transaction are missed at once."""
    time.sleep(seconds / 2)
    left = soak.now()
    _rename_tables(online_file, lambda name: f"away_{name}")
    time.sleep(min(seconds / 20, 10.0))
    _rename_tables(online_file, lambda name: name.removeprefix("away_"))
    soak.outage = (left, soak.now())


def watch_memory(soak: Soak, port: str, seconds: float) -> None:
    """Resident memory of the processes that were started with this port, and of theirs."""
    while soak.now() < seconds:
        listed = subprocess.run(["ps", "-eo", "pid,ppid,rss,args"], capture_output=True, text=True, check=True)
        rows = [line.split(None, 3) for line in listed.stdout.splitlines()[1:]]
        own = {pid for pid, _, _, arguments in rows if f"--port {port}" in arguments}
        total = sum(int(rss) for pid, parent, rss, _ in rows if pid in own or parent in own)
        soak.memory_mib.append((soak.now(), total / 1024))
        time.sleep(1.0)


def _rename_tables(path: Path, new_name: Callable[[str], str]) -> None:
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        for (name,) in connection.execute(tables).fetchall():
            connection.execute(f'ALTER TABLE "{name}" RENAME TO "{new_name(name)}"')
        connection.execute("COMMIT")


def copied(home: DatasetWorkspace, tracking_uri: str | None, folder: Path) -> tuple[Registry, list[int]]:
    """The data and features of a home in `folder`; the registry there, and the two versions of the champion in it."""
    there = Workspace(folder).dataset(home.name)
    for place in ("data", "features"):
        shutil.copytree(getattr(home, place), getattr(there, place))
    Workspace(folder).remember(home.name)
    champion = Registry(tracking_uri, home.root.parent / "mlflow", model_name_for(home.name))
    bundle = champion.download(CHAMPION, to=folder / "made")
    again = Path(shutil.copytree(bundle, bundle.with_name(f"{bundle.name}-again")))
    write_json(again / "bundle.json", {**read_json(again / "bundle.json"), "bundle_id": again.name})
    registry = Registry(None, Workspace(folder).mlflow, model_name_for(home.name))
    versions = [registry.register(made).version for made in (bundle, again)]
    registry.promote(versions[0])
    return registry, versions


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--dataset")
    for name, default in (("minutes", 10.0), ("reloads", 20), ("rate", 50.0)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    settings, seconds = read_settings(options.home), options.minutes * 60
    home = settings.paths().choose(options.dataset or settings.dataset)
    with tempfile.TemporaryDirectory(prefix="recsys-soak-") as folder:
        registry, versions = copied(home, settings.mlflow_tracking_uri, Path(folder))
        there = Workspace(Path(folder)).dataset(home.name)
        config = read_settings(Path(folder)).feature_store(there)
        store = FeatureStore(config)
        store.apply()
        store.materialize()
        store.close()
        rated = pd.read_parquet(there.data / "events.parquet").groupby(USER_ID)[ITEM_ID].agg(frozenset).to_dict()
        seen = {user_id: rated.get(user_id, frozenset()) for user_id in sample_of_users(there)}
        assert config.online_file is not None, "a Redis is not taken away; unset RECSYS_ONLINE_STORE"
        with running(there, 1, None, {"MLFLOW_TRACKING_URI": ""}) as url:
            soak = Soak(seen, versions)
            happenings = [
                partial(promote, soak, registry, url, seconds, options.reloads),
                partial(take_store_away, soak, config.online_file, seconds),
                partial(watch_memory, soak, url.rpartition(":")[2], seconds),
            ]
            asyncio.run(ask_all(soak, url, options.rate, seconds, happenings))
    for name, (holds, figures) in (verdicts := soak.verdicts(seconds, options.reloads)).items():
        print(f"{'ok  ' if holds else 'FAIL'}  {name:10} {figures}")
    print(*(f"      {kind}: {what}" for kind, what in soak.wrong[:20]), sep="\n")
    return 0 if all(holds for holds, _ in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
