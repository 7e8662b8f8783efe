"""The commands of the online track: serve, bench.

Stage: the edge. In: argv and `recsys.settings`. Out: a running service; a latency report. Absent: logic. Heavy
libraries are imported inside the commands, so that `--help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.settings import ServiceSettings

app = typer.Typer(no_args_is_help=True)
bench = typer.Typer(no_args_is_help=True, help="Measure how fast answers are. Example: `recsys bench latency`.")
app.add_typer(bench, name="bench")

Dataset = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Name of a trained data set. Default: the one used last.")
]
HomeFolder = Annotated[
    Path | None,
    typer.Option("--home", help="Folder for everything that a run writes. Default: RECSYS_HOME, else .recsys/."),
]
Budget = Annotated[float, typer.Option("--budget-ms", min=1.0, help="Milliseconds that one answer may take.")]


@app.command()
def serve(
    dataset: Dataset = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on.")] = 8000,
    budget_ms: Budget = 50.0,
    home: HomeFolder = None,
) -> None:
    """Answer recommendations over HTTP with the champion of a data set.

    Open http://127.0.0.1:8000/ for the page, /docs for the API. An answer that runs out of its budget leaves parts
    out and says which. One process serves a data set; Ctrl-C stops it.

    Example: `recsys serve --dataset ml-100k --port 8080`
    """
    import logging
    import os
    import socket

    from recsys.errors import RecsysError

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # FAISS's and BLAS' threads read it when they are first loaded
    settings = _settings(dataset, home, host=host, port=port, budget_ms=budget_ms)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "httpx", "feast", "faiss"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

    shown = f"[{host}]" if ":" in host else host
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:  # before anything slow: a port that is taken is told at once
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise RecsysError(f"Cannot listen on {shown}:{port}: {error.strerror}. Choose another --port.") from error

    import uvicorn

    from serving.app import create_app

    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(create_app(settings, on_failure=stop), log_config=None, access_log=False, server_header=False)
    )
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    typer.echo(f"recsys: {settings.home.name} at {address} (ready when it says so; Ctrl-C stops it)", err=True)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        typer.echo("recsys: service stopped", err=True)
    finally:
        listening.close()
    if failures:
        raise failures[0]


@bench.command()
def latency(
    dataset: Dataset = None,
    url: Annotated[
        str | None, typer.Option(help="A service that runs already. Default: one is started, measured and stopped.")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=100, help="Movies an answer.")] = 10,
    n: Annotated[int, typer.Option("--requests", "-n", min=1, help="Requests to measure.")] = 500,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before measuring starts.")] = 50,
    budget_ms: Budget = 50.0,
    home: HomeFolder = None,
) -> None:
    """Measure one client's answers: in process stage by stage, and over HTTP.

    Writes latency.json below the data set's reports and prints a table. Ends with exit code 1 if the 99th percentile
    over HTTP exceeds the budget.

    Example: `recsys bench latency --dataset ml-100k --requests 1000 --budget-ms 20`
    """
    import os
    import shlex
    import sys

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # FAISS's and BLAS' threads read it when they are first loaded
    settings = _settings(dataset, home, budget_ms=budget_ms)

    from contextlib import nullcontext

    from recsys.artefacts import write_json
    from recsys.errors import RecsysError
    from serving import bench as measuring

    user_ids = measuring.users_of(settings.home)
    inside = measuring.in_process(settings, user_ids, k, n, warmup)
    with nullcontext(url.rstrip("/")) if url else measuring.own_service(settings) as address:
        card = measuring.describe(address)
        if card["dataset"]["name"] != settings.home.name:
            raise RecsysError(f"{address} serves {card['dataset']['name']}, not {settings.home.name}; give --dataset.")
        http = measuring.over_http(address, user_ids, k, n, warmup)
    report = {
        "about": measuring.surroundings(shlex.join(["recsys", *sys.argv[1:]])),
        "dataset": card["dataset"],
        "model": {key: card[key] for key in ("version", "bundle_id", "code_version", "dataset")},
        "k": k,
        "n": n,
        "warmup": warmup,
        "users": len(user_ids),
        "in_process": inside,
        "http": http,
        "budget_ms": budget_ms,
        "within_budget": http["http"]["p99_ms"] <= budget_ms,
    }
    path = settings.home.reports / "latency.json"
    write_json(path, report)
    typer.echo(f"written to {path}", err=True)
    typer.echo(measuring.table(report))
    if not report["within_budget"]:
        raise typer.Exit(1)


def _settings(dataset: str | None, home: Path | None, **options: object) -> "ServiceSettings":
    """The environment's settings with the command's on top. Raises ConfigError where no such data set is there."""
    from recsys.settings import read_settings
    from serving.settings import ServiceSettings

    settings = read_settings(home)
    return ServiceSettings.build(settings, settings.paths().choose(dataset or settings.dataset), **options)
