"""The command of the online track: serve. Heavy libraries are imported inside it, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True)

Dataset = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Name of a trained data set. Default: the one used last.")
]
HomeFolder = Annotated[
    Path | None,
    typer.Option("--home", help="Folder for everything that a run writes. Default: RECSYS_HOME, else .recsys/."),
]
Budget = Annotated[float, typer.Option("--budget-ms", min=1.0, help="Milliseconds that one answer may take.")]


@app.callback()
def _online() -> None:
    """A group, though of one command: Typer would drop the command's name otherwise."""


@app.command()
def serve(
    dataset: Dataset = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network, and needs RECSYS_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
    budget_ms: Budget = 50.0,
    shadow_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the requests that a version in shadow scores too.")
    ] = None,
    reload_s: Annotated[
        float | None, typer.Option(min=0.0, help="Seconds between looks at who is champion; 0 never looks.")
    ] = None,
    log_format: Annotated[str, typer.Option(help="text, or json: one object a line.")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    home: HomeFolder = None,
) -> None:
    """Answer recommendations over HTTP with the champion of a data set, and follow it when another is promoted.

    Open http://127.0.0.1:8000/ for the page, /docs for the API, /metrics for Prometheus. An answer that runs out of
    its budget leaves parts out and says which. Ctrl-C or SIGTERM stops the service once what is in flight is answered.

    With RECSYS_API_KEY set, events and /v1/admin need that key; without it the service listens on this machine only.

    Example: `recsys serve --dataset ml-100k --port 8080 --workers 2`
    """
    import os
    import signal
    import socket
    import sys

    from recsys.errors import RecsysError

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # FAISS's and BLAS' threads read it when they are first loaded
    from serving.settings import ServiceSettings

    options: dict[str, Any] = {
        "home": None if home is None else str(home),
        "dataset": dataset,
        "host": host,
        "port": port,
        "workers": workers,
        "budget_ms": budget_ms,
        "shadow_share": shadow_share,
        "reload_s": reload_s,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = ServiceSettings.choose(**options)
    shown = f"[{host}]" if ":" in host else host
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:  # before anything slow: a port that is taken is reported at once
            tried.bind((host, port))
        except OSError as error:
            raise RecsysError(f"Cannot listen on {shown}:{port}: {error.strerror}. Choose another --port.") from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn drains first, then raises the signal again
    from serving.app import run

    typer.echo(f"recsys: {settings.home.name} at http://{shown}:{port}/ (Ctrl-C stops it)", err=True)
    run(options)
    typer.echo("recsys: service stopped", err=True)
