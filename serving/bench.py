"""How fast the service answers: in process stage by stage, and over HTTP by one client that waits for each answer.

Stage: serving. In: `ServiceSettings`, and a running service or none (then one is started as a process of its own).
Out: a JSON report and a table. Absent: load by many clients at once, and the quality of the answers.
"""

import os
import platform
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recsys.columns import USER_ID
from recsys.errors import ConfigError, MissingArtefactError, RecsysError
from recsys.evaluation.latency import TOTAL, measure_in_process, percentiles_ms
from recsys.feature_store import FeatureStore
from recsys.features.state import UserState, state_batch
from recsys.home import DatasetHome
from recsys.recommender import Context
from recsys.settings import REPOSITORY
from serving.model import ServedModel, settle
from serving.settings import ServiceSettings

PACKAGES = ("torch", "faiss-cpu", "lightgbm", "feast", "fastapi", "uvicorn", "numpy")
START_LIMIT_S = 180
USERS = 200  # asked in turn
SEED = 7


def in_process(settings: ServiceSettings, user_ids: list[int], k: int, n: int, warmup: int) -> dict[str, Any]:
    """Percentiles a stage of `Recommender.recommend` on the champion, and of one read of the store before it."""
    store = FeatureStore(settings.feature_store)
    now = int(time.time())
    model = ServedModel.load(settings, store, now)
    reads, batches = [], []
    for user_id in user_ids:
        started = time.perf_counter()
        stored = store.online_state(user_id)
        reads.append((time.perf_counter() - started) * 1e3)
        state, seen = stored if stored is not None else (UserState(user_id), np.empty(0, dtype=np.int64))
        batches.append(state_batch(model.catalogue, [state], [seen], now))
    settle()
    measured = measure_in_process(model.recommender, batches, Context(model.stats), k, n=n, warmup=warmup)
    store.close()
    warm = reads[len(reads) // 5 :] or reads  # the first ones open the store
    return {"state read": percentiles_ms(warm), **measured}


def over_http(url: str, user_ids: list[int], k: int, n: int, warmup: int) -> dict[str, Any]:
    """One client, one connection, the next request when the answer is there. An answer that is not 200 is an error."""
    import httpx

    durations: list[float] = []
    inside: list[float] = []
    degraded: Counter[str] = Counter()
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        for i in range(warmup + n):
            path = f"/v1/users/{user_ids[i % len(user_ids)]}/recommendations"
            started = time.perf_counter()
            try:
                response = client.get(path, params={"k": k})
            except httpx.HTTPError as error:
                raise RecsysError(f"{url} stopped answering: {error}") from error
            elapsed_ms = (time.perf_counter() - started) * 1e3
            if response.status_code != 200:
                raise RecsysError(f"{url}{path} answered {response.status_code}: {response.text[:200]}")
            if i >= warmup:
                body = response.json()
                durations.append(elapsed_ms)
                inside.append(body["timings_ms"][TOTAL])
                degraded.update(body["degraded"])
    return {
        "http": percentiles_ms(durations),
        "inside the service": percentiles_ms(inside),
        "degraded": dict(degraded),
    }


def describe(url: str) -> dict[str, Any]:
    """The model card of a running service. Raises RecsysError where nothing ready answers."""
    import httpx

    try:
        response = httpx.get(f"{url}/v1/model", timeout=10, trust_env=False)
        response.raise_for_status()
        card: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise RecsysError(f"No ready service at {url}: {error}") from error
    return card


@contextmanager
def own_service(settings: ServiceSettings) -> Iterator[str]:
    """A service in a process of its own on a free port; yields its address once it is ready, stops it afterwards."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "recsys", "serve", "--dataset", settings.home.name]
    command += ["--home", str(settings.home.root.parent), "--port", str(port), "--budget-ms", str(settings.budget_ms)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    try:
        until = time.monotonic() + START_LIMIT_S
        while True:
            try:
                if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                said = (process.communicate()[1] or b"").decode(errors="replace").strip().splitlines()
                raise RecsysError(f"The service did not start: {said[-1] if said else 'it said nothing'}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def users_of(home: DatasetHome, size: int = USERS, seed: int = SEED) -> list[int]:
    """Known users, drawn at random with a fixed seed."""
    path = home.data / "users.parquet"
    if not path.exists():
        raise MissingArtefactError(f"No users in {home.data}. Run `recsys data` first.")
    ids = pq.read_table(path, columns=[USER_ID])[USER_ID].to_numpy()
    if not len(ids):
        raise ConfigError(f"{path} holds no user to ask for.")
    chosen = np.random.default_rng(seed).choice(ids, min(size, len(ids)), replace=False)
    return [int(user_id) for user_id in chosen]


def surroundings(command: str) -> dict[str, Any]:
    """Machine, versions, date, git commit and the command that measured."""
    git = ["git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "command": command,
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu()}, {platform.system()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def table(report: dict[str, Any]) -> str:
    """The report for people; the last line says what was found."""
    card, http = report["model"], report["http"]
    lines = [
        f"{card['dataset']['label']}, version {card['version']} ({card['bundle_id']}), k = {report['k']}",
        f"{report['about']['machine']}; {report['n']} requests after {report['warmup']} for warm-up, one at a time",
        "",
    ]
    in_process_rows = [(f"in process, {stage}", values) for stage, values in report["in_process"].items()]
    rows = [*in_process_rows, ("inside the service", http["inside the service"]), ("over HTTP", http["http"])]
    width = max(len(name) for name, _ in rows) + 2
    lines.append(f"{'milliseconds':<{width}}{'p50':>9}{'p95':>9}{'p99':>9}")
    for name, values in rows:
        lines.append(f"{name:<{width}}" + "".join(f"{values[f'p{p}_ms']:>9.2f}" for p in (50, 95, 99)))
    if http["degraded"]:
        lines.append(f"degraded answers: {', '.join(f'{part} {n}' for part, n in sorted(http['degraded'].items()))}")
    p99, budget_ms = http["http"]["p99_ms"], report["budget_ms"]
    verdict = "within" if report["within_budget"] else "OVER"
    return "\n".join([*lines, "", f"p99 over HTTP is {p99:.1f} ms, {verdict} the budget of {budget_ms:g} ms."])


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown CPU"
