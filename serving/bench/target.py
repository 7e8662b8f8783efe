"""The service that is measured: one that runs already, or one started for the purpose and stopped afterwards.

Stage: serving (benchmark). In: `ServiceSettings`, or an address. Out: a `Target`; whom to ask for. Absent: load.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recsys.columns import USER_ID
from recsys.errors import ConfigError, MissingArtefactError, RecsysError
from recsys.workspace import DatasetWorkspace
from serving.settings import ServiceSettings

START_LIMIT_S, STOP_LIMIT_S = 180, 20
USERS = 200  # asked in turn
SEED = 7


@dataclass(frozen=True)
class Target:
    """`pid` and `ready_s`, seconds from the start of the process until it was ready, are None where it ran already."""

    url: str
    pid: int | None = None
    ready_s: float | None = None

    def resident_mib(self) -> float | None:
        """Memory that the process holds now; None where it is not ours or the system does not tell."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8") if self.pid else ""
        except OSError:
            return None
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else None

    def card(self) -> dict[str, Any]:
        """The model card. Raises RecsysError where nothing ready answers."""
        import httpx

        try:
            response = httpx.get(f"{self.url}/v1/model", timeout=10, trust_env=False)
            response.raise_for_status()
            card: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise RecsysError(f"No ready service at {self.url}: {error}") from error
        return card


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def own_service(settings: ServiceSettings, *options: str) -> Iterator[Target]:
    """A service in a process of its own on a free port, with more `options` of `recsys serve`; once it is ready.

    It has a session of its own, so that Ctrl-C reaches us alone; it is stopped when the block is left, however that
    happens. Raises RecsysError with its last words where it does not start.
    """
    import httpx

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "recsys", "serve", "--dataset", settings.home.name]
    command += ["--home", str(settings.home.root.parent), "--port", str(port), "--budget-ms", str(settings.budget_ms)]
    environment = _environment(settings)
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads would stop a talkative service
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.DEVNULL, stderr=said, env=environment, start_new_session=True
        )
        try:
            while True:
                try:
                    if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                if process.poll() is not None or time.monotonic() > started + START_LIMIT_S:
                    said.seek(0)
                    lines = said.read().decode(errors="replace").strip().splitlines()
                    raise RecsysError(f"The service did not start: {lines[-1] if lines else 'it said nothing'}")
                time.sleep(0.05)
            yield Target(url, process.pid, time.monotonic() - started)
        finally:
            stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End it, by force where it does not end by itself."""
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment(settings: ServiceSettings) -> dict[str, str]:
    """Our own, but with the stores that `settings` name: a service over a copy of a home must not write to the servers
    of whoever measures."""
    own = {
        "OMP_NUM_THREADS": "1",
        "RECSYS_ONLINE_STORE": settings.feature_store.online_store,
        "RECSYS_REDIS_CONNECTION": settings.feature_store.redis_connection,
        "RECSYS_REGISTRY_PATH": settings.feature_store.registry_path,
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
    }
    kept = {name: value for name, value in os.environ.items() if name.upper() not in own}
    return kept | {name: value for name, value in own.items() if value is not None}


def users_of(home: DatasetWorkspace, size: int = USERS, seed: int = SEED) -> list[int]:
    """Known users, drawn at random with a fixed seed."""
    path = home.data / "users.parquet"
    if not path.exists():
        raise MissingArtefactError(f"No users in {home.data}. Run `recsys data` first.")
    ids = pq.read_table(path, columns=[USER_ID])[USER_ID].to_numpy()
    if not len(ids):
        raise ConfigError(f"{path} holds no user to ask for.")
    chosen = np.random.default_rng(seed).choice(ids, min(size, len(ids)), replace=False)
    return [int(user_id) for user_id in chosen]


def recommendation_paths(user_ids: list[int], k: int) -> tuple[str, ...]:
    return tuple(f"/v1/users/{user_id}/recommendations?k={k}" for user_id in user_ids)
