"""The commands of the benchmark: `recsys bench latency` and `recsys bench freshness`."""

import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
bench = typer.Typer(no_args_is_help=True, help="Measure how fast answers are. Example: `recsys bench latency`.")
app.add_typer(bench, name="bench")


@bench.callback()
def _stoppable() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by an exception, so that what was started is stopped


Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="A trained data set. Default: the last one used.")]
Home = Annotated[Path | None, typer.Option(help="Folder of all runs. Default: RECSYS_HOME, else .recsys/.")]
BaseUrl = Annotated[str | None, typer.Option(help="A service that runs already. Default: one is started and stopped.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes of the service that is started.")]
Requests = Annotated[int, typer.Option("--requests", "-n", min=1, help="Requests, or ratings, of each measurement.")]
BudgetMs = Annotated[float, typer.Option(min=0.1, help="What p99 may be, of one client.")]


@bench.command()
def latency(
    dataset: Dataset = None,
    base_url: BaseUrl = None,
    workers: Workers = 1,
    n: Requests = 1_000,
    budget_ms: BudgetMs = 50.0,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter steps, no larger catalogues, no GPU.")] = False,
    home: Home = None,
) -> None:
    """Measure answers: in process against the bare libraries, over HTTP in closed and open loops, to saturation.

    Writes latency.json, latency.md and latency.png below the data set's reports; docs/latency.md says how to read them.
    Ends with exit code 1 if p99 of one client over HTTP exceeds the budget. With --base-url only HTTP is measured.

    Example: `recsys bench latency --dataset ml-100k --requests 2000 --budget-ms 20`
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # FAISS's and BLAS' threads read it when they are first loaded
    from recsys.evaluation.about import command_line
    from recsys.settings import read_settings
    from serving.benchmark.latency import Options, run
    from serving.benchmark.report import markdown, save

    settings = read_settings(home)
    chosen = settings.paths().choose(dataset or settings.dataset)
    options = Options(n, workers, quick, base_url, budget_ms)
    report = run(settings, chosen, options, command_line(sys.argv[1:]), lambda text: typer.echo(text, err=True))
    save(report, chosen.reports)
    typer.echo(markdown(report))
    if not report.within_budget:
        raise typer.Exit(1)


@bench.command()
def freshness(
    dataset: Dataset = None,
    base_url: BaseUrl = None,
    workers: Workers = 2,
    n: Requests = 500,
    budget_ms: BudgetMs = 30.0,
    home: Home = None,
) -> None:
    """Measure how long after an accepted rating the recommendations know it.

    A service that is started for it uses an event table of its own. One at --base-url keeps the ratings! Ends with exit
    code 1 if p99 exceeds the budget, or a list did not come or did not know the rating.

    Example: `recsys bench freshness --dataset ml-100k --workers 2`
    """
    import asyncio

    from recsys.atomic_io import write_json
    from recsys.settings import read_settings
    from serving.benchmark.freshness import measure, scratch_events
    from serving.benchmark.service import running, sample_of_users

    settings = read_settings(home)
    chosen = settings.paths().choose(dataset or settings.dataset)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        scratch = {} if base_url else {"RECSYS_EVENTS_URL": scratch_events(Path(folder), settings.event_table(chosen))}
        with running(chosen, workers, base_url, scratch) as url:
            result = asyncio.run(measure(url, sample_of_users(chosen), n=n, api_key=key))
    write_json(chosen.reports / "freshness.json", asdict(result))
    for name, ms in (("accepted after", result.post), ("known after that", result.fresh)):
        typer.echo(f"{name}: p50 {ms.p50_ms:.1f} ms, p99 {ms.p99_ms:.1f} ms, of {ms.n} ratings")
    typer.echo(f"{result.stale} lists did not know the rating, {result.unanswered} were not made from the user's state")
    if result.stale or result.unanswered or result.fresh.p99_ms > budget_ms:
        raise typer.Exit(1)
