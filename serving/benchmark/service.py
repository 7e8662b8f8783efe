"""The service that is measured: one that runs already, or one started for the purpose and stopped afterwards."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pandas as pd

from recsys.columns import USER_ID
from recsys.errors import MissingArtefactError, RecsysError
from recsys.workspace import DatasetWorkspace

START_S, STOP_S = 180, 20  # the longest that it may take
USERS, SEED = 200, 7


@contextmanager
def running(
    home: DatasetWorkspace, workers: int, base_url: str | None, variables: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Address of the service at `base_url`, or of one over the home, with more environment `variables`, that stops when
    the block is left. Raises RecsysError where it is not ready."""
    if base_url is not None:
        if not _is_ready(base_url):
            raise RecsysError(f"No ready service at {base_url}. Start one with `recsys serve`, or omit --base-url.")
        yield base_url.rstrip("/")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, environment = f"http://127.0.0.1:{port}", os.environ | {"OMP_NUM_THREADS": "1"} | dict(variables or {})
    command = [sys.executable, "-m", "recsys", "serve", "--dataset", home.name, "--home", str(home.root.parent)]
    command += ["--port", str(port), "--workers", str(workers)]
    with tempfile.TemporaryFile() as output:  # a pipe that nobody reads would stop a talkative service
        begun = time.monotonic()
        process = subprocess.Popen(  # in a session of its own: Ctrl-C reaches this process alone
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            while not _is_ready(url):
                if process.poll() is not None or time.monotonic() > begun + START_S:
                    output.seek(0)
                    lines = output.read().decode(errors="replace").split("\n")
                    raise RecsysError("The service did not start: " + "\n".join(lines[-4:]).strip())
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:  # nosec B310: a service of the caller's
            return bool(response.status == 200)
    except OSError:
        return False


def sample_of_users(home: DatasetWorkspace) -> list[int]:
    """Users of the data set, drawn at random with a fixed seed."""
    path = home.data / "users.parquet"
    if not path.exists():
        raise MissingArtefactError(f"No users in {home.data}. Run `recsys data` first.")
    ids = pd.read_parquet(path, columns=[USER_ID])[USER_ID].to_numpy()
    return np.random.default_rng(SEED).choice(ids, min(USERS, len(ids)), replace=False).tolist()  # type: ignore[no-any-return]


def recommendation_path(user_id: int) -> str:
    return f"/v1/users/{user_id}/recommendations?k=10"
