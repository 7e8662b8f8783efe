"""`make quickstart` after the installation: everything, then one real request over HTTP.

The service is started as a process of its own, as a user would start it.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from pipelines.obtain import obtain_or_synthetic, say
from pipelines.pipeline import open_pipeline
from pipelines.training import train
from recsys.data.tables import load_tables
from recsys.errors import RecsysError
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace

READY_WITHIN_S = 120
SHOWN = 10


def run(dataset: str, user: int | None, settings: Settings) -> None:
    """Each step says what it does; a second run repeats only what changed."""
    started = time.perf_counter()
    name = obtain_or_synthetic(dataset, settings)
    train(open_pipeline(name, settings, later_ratings="new"))
    root = settings.paths()
    home = root.choose(name)
    events = load_tables(home.data).events
    user_id = int(events["user_id"].iloc[-1]) if user is None else user
    with _service(home, settings) as url:
        typer.echo(f"\nGET {url}/v1/users/{user_id}/recommendations?k={SHOWN}")
        answer = _get(f"{url}/v1/users/{user_id}/recommendations?k={SHOWN}")
        history = _get(f"{url}/v1/users/{user_id}/history?n={SHOWN}")
    _print(answer, history, user_id)
    typer.echo(f"\n{time.perf_counter() - started:.0f} s in all. Next:")
    chosen = f" --dataset {name}" + ("" if str(settings.home) == ".recsys" else f" --home {settings.home}")
    typer.echo(f"  the report            {home.reports / 'report.html'}")
    typer.echo(f"  serve, with a page    .venv/bin/recsys serve{chosen}      then open http://127.0.0.1:8000/")
    typer.echo(f"  all users to a file   .venv/bin/recsys batch{chosen} --k 10 --out recommendations.parquet")
    typer.echo(f"  measure latency       .venv/bin/recsys bench latency{chosen}")
    typer.echo("  read the code         pipelines/stages.py lists every step in order")


@contextmanager
def _service(home: DatasetWorkspace, settings: Settings) -> Iterator[str]:
    """The service on a free port of this machine, ready to answer; stopped afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    say(f"starting the service: recsys serve --port {port}")
    command = [sys.executable, "-m", "recsys", "serve", "--dataset", home.name, "--home", str(settings.home)]
    log = home.reports / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not _ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RecsysError(f"The service did not become ready; its output is in {log}.")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never ask a proxy for this machine


def _ready(url: str) -> bool:
    try:
        with _DIRECT.open(f"{url}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _get(url: str) -> Any:
    with _DIRECT.open(url, timeout=30) as response:
        return json.load(response)


def _print(answer: dict[str, Any], history: dict[str, Any], user_id: int) -> None:
    """Recent history on the left, recommendations on the right."""
    label = answer["dataset"]["label"]
    typer.echo(f"\ndata set {label}, model version {answer['model']['version']}\n")
    left = [f"{item['rating']:.1f}  {item['title']}"[:42] for item in history["events"]]
    right = [f"{item['rank']:2}. {item['title']}  [{', '.join(item['genres'])}]" for item in answer["items"]]
    typer.echo(f"{f'what user {user_id} rated last':44}  what the service recommends")
    for row in range(max(len(left), len(right))):
        typer.echo(f"{left[row] if row < len(left) else '':44}  {right[row] if row < len(right) else ''}".rstrip())
