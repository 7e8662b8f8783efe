"""`make quickstart` after the installation: everything, then one real request over HTTP.

The service is started as a process of its own, as a user would start it.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import httpx
import typer

from pipelines.obtain import obtain_or_synthetic
from pipelines.pipeline import open_pipeline
from pipelines.stage_runner import say
from pipelines.stages import train
from recsys.errors import RecsysError
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace

READY_WITHIN_S = 120
SHOWN = 10


def run(dataset: str, user: int | None, settings: Settings) -> None:
    """Each step says what it does; a second run repeats only what changed."""
    started = time.perf_counter()
    name = obtain_or_synthetic(settings, dataset)
    pipeline = open_pipeline(name, settings, later_ratings="new")
    train(pipeline)
    home = pipeline.home
    user_id = int(pipeline.data.tables.events["user_id"].iloc[-1]) if user is None else user
    with service(home, settings) as client:
        path = f"/v1/users/{user_id}"
        typer.echo(f"\nGET {client.base_url}{path}/recommendations?k={SHOWN}")
        answer = client.get(f"{path}/recommendations?k={SHOWN}").raise_for_status().json()
        history = client.get(f"{path}/history?n={SHOWN}").raise_for_status().json()
    _print(answer, history, user_id)
    chosen = f" --dataset {name}" + ("" if str(settings.home) == ".recsys" else f" --home {settings.home}")
    typer.echo(
        f"\n{time.perf_counter() - started:.0f} s in all. Next:\n"
        f"  the report            {home.reports / 'report.html'}\n"
        f"  serve, with a page    .venv/bin/recsys serve{chosen}      then open http://127.0.0.1:8000/\n"
        f"  all users to a file   .venv/bin/recsys batch{chosen} --k 10 --out recommendations.parquet\n"
        f"  measure latency       .venv/bin/recsys bench latency{chosen}\n"
        "  read the code         pipelines/stages.py lists every step in order"
    )


@contextmanager
def service(home: DatasetWorkspace, settings: Settings) -> Iterator[httpx.Client]:
    """The service on a free port of this machine, ready to answer; stopped afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    say(f"starting the service: recsys serve --port {port}")
    command = [sys.executable, "-m", "recsys", "serve", "--dataset", home.name, "--home", str(settings.home)]
    log = home.reports / "service.log"
    with (
        log.open("wb") as output,
        # never ask a proxy for this machine
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not _ready(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RecsysError(f"The service did not become ready; its output is in {log}.")
                time.sleep(0.2)
            yield client
        finally:
            process.terminate()
            process.wait(timeout=30)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz", timeout=2).is_success
    except httpx.HTTPError:
        return False


def _print(answer: dict[str, Any], history: dict[str, Any], user_id: int) -> None:
    """Recent history on the left, recommendations on the right."""
    typer.echo(f"\ndata set {answer['dataset']['label']}, model version {answer['model']['version']}\n")
    typer.echo(f"{f'what user {user_id} rated last':44}  what the service recommends")
    rated = [f"{item['rating']:.1f}  {item['title']}"[:42] for item in history["events"]]
    items = [f"{item['rank']:2}. {item['title']}  [{', '.join(item['genres'])}]" for item in answer["items"]]
    for left, right in zip_longest(rated, items, fillvalue=""):
        typer.echo(f"{left:44}  {right}".rstrip())
