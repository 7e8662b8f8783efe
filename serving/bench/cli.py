"""The commands of the benchmark: `recsys bench latency`, `recsys bench freshness` and `recsys bench soak`.

Stage: the edge. In: argv and `recsys.settings`. Out: reports below the data set's reports, text on stdout (results) and
stderr (progress), an exit code. Absent: logic. Heavy libraries are imported inside the commands, so that `--help`
answers at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.evaluation.about import command_line
from serving.cli import Budget, Dataset, HomeFolder

if TYPE_CHECKING:
    from serving.settings import ServiceSettings

app = typer.Typer(no_args_is_help=True)
bench = typer.Typer(
    no_args_is_help=True,
    help="Measure how fast answers are, and whether they stay right under load. Example: `recsys bench latency`.",
)
app.add_typer(bench, name="bench")


@bench.command()
def latency(
    dataset: Dataset = None,
    sections: Annotated[
        str | None,
        typer.Option(help="Comma-separated: in-process, closed, sweep, open, catalogue, device. Default: all."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A service that runs already. Default: one is started, measured and stopped.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the service that is started.")] = 1,
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=100, help="Items an answer.")] = 10,
    n: Annotated[int, typer.Option("--requests", "-n", min=1, help="Requests of each measurement.")] = 500,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before measuring starts.")] = 50,
    quick: Annotated[
        bool, typer.Option("--quick", help="A minute instead of four: no larger catalogues, shorter steps.")
    ] = False,
    wrk: Annotated[
        bool, typer.Option("--wrk", help="Hold our closed loop against wrk's, where that is there.")
    ] = False,
    hnsw: Annotated[
        bool, typer.Option("--hnsw", help="Build HNSW over a million vectors too: about ten minutes more.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of the section device: cuda, cuda:1, cpu.")] = "cuda",
    budget_ms: Budget = 50.0,
    home: HomeFolder = None,
) -> None:
    """Measure answers: in process against the bare libraries, over HTTP in closed and open loops, to saturation.

    Writes latency.json, latency.md and latency-*.png below the data set's reports, and prints a table (docs/latency.md
    says how to read it). Ends with exit code 1 if the 99th percentile of one client over HTTP exceeds the budget.

    Example: `recsys bench latency --dataset ml-100k --requests 1000 --budget-ms 20`
    """
    settings = _settings(dataset, home, budget_ms=budget_ms)

    from serving.bench import latency as measuring
    from serving.bench.report import save, text_table

    chosen = measuring.SECTIONS if sections is None else tuple(name.strip() for name in sections.split(","))
    options = measuring.Options(
        sections=tuple(name for name in chosen if sections is not None or not quick or name != "catalogue"),
        k=k,
        requests=n,
        warmup=warmup,
        step_s=2.0 if quick else 4.0,
        open_s=6.0 if quick else 20.0,
        url=url,
        workers=workers,
        wrk=wrk,
        hnsw=hnsw,
        device=device,
    )
    with _stoppable():
        report = measuring.run(settings, options, command_line(sys.argv[1:]), _say)
    for path in save(report, settings.home.reports):
        _say(f"written to {path}")
    typer.echo(text_table(report))
    if not report["verdict"]["within_budget"]:
        raise typer.Exit(1)


@bench.command()
def soak(
    dataset: Dataset = None,
    minutes: Annotated[float, typer.Option(min=0.2, help="How long the load lasts.")] = 10.0,
    reloads: Annotated[int, typer.Option(min=0, help="Promotions meanwhile, evenly spread.")] = 20,
    k: Annotated[int, typer.Option("--k", "-k", min=1, max=100, help="Items an answer.")] = 10,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Requests a second. Default: 60 % of the saturation found first.")
    ] = None,
    budget_ms: Budget = 50.0,
    home: HomeFolder = None,
) -> None:
    """Soak a service: load, hot reloads, a store that goes away and comes back, malformed requests.

    All happens in a copy of the home. Writes soak.json below the data set's reports. Ends with exit code 1 if anything
    was violated: a server error, an answer for the wrong user, memory that grows, a degradation that was not counted.

    Example: `recsys bench soak --minutes 1 --reloads 2`
    """
    settings = _settings(dataset, home, budget_ms=budget_ms)

    from recsys.atomic_io import write_json
    from serving.bench import soak as soaking
    from serving.bench.soak_checks import text

    options = soaking.SoakOptions(minutes=minutes, reloads=reloads, k=k, rate=rate)
    with _stoppable():
        report = soaking.run(settings, options, command_line(sys.argv[1:]), _say)
    path = settings.home.reports / "soak.json"
    write_json(path, report)
    _say(f"written to {path}")
    typer.echo(text(report))
    if not report["passed"]:
        raise typer.Exit(1)


@bench.command()
def freshness(
    dataset: Dataset = None,
    stores: Annotated[
        str | None, typer.Option(help="Comma-separated: sqlite, redis. Default: both, where redis-server is on PATH.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Of each of the four rounds on each store.")] = 15.0,
    events: Annotated[float, typer.Option(min=0.5, help="Ratings a second.")] = 20.0,
    rate: Annotated[float, typer.Option(min=1.0, help="Lists a second that others read.")] = 20.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the service.")] = 2,
    k: Annotated[int, typer.Option("--k", "-k", min=2, max=100, help="Items an answer.")] = 10,
    limit_ms: Annotated[
        float, typer.Option(min=1.0, help="Milliseconds at p99, from an accepted rating to a list that knows it.")
    ] = 30.0,
    most_ratio: Annotated[
        float, typer.Option(min=1.0, help="The others' p99 while ratings come in, over theirs without.")
    ] = 1.5,
    budget_ms: Budget = 50.0,
    home: HomeFolder = None,
) -> None:
    """Measure how long after an accepted rating the recommendations know it, on SQLite and on Redis, while others read.

    All happens in a copy of the home. Writes freshness.json below the data set's reports. Ends with exit code 1 if the
    99th percentile exceeds the limit, reads are slowed down by more than the ratio, or a rating was not seen at once.

    Example: `recsys bench freshness --stores sqlite --limit-ms 50`
    """
    settings = _settings(dataset, home, budget_ms=budget_ms)

    from recsys.atomic_io import write_json
    from serving.bench import freshness as measuring

    chosen = None if stores is None else tuple(name.strip() for name in stores.split(","))
    options = measuring.FreshnessOptions(
        stores=chosen,
        seconds=seconds,
        events=events,
        rate=rate,
        workers=workers,
        k=k,
        limit_ms=limit_ms,
        most_ratio=most_ratio,
    )
    with _stoppable():
        report = measuring.run(settings, options, command_line(sys.argv[1:]), _say)
    path = settings.home.reports / "freshness.json"
    write_json(path, report)
    _say(f"written to {path}")
    typer.echo(measuring.text(report))
    if not report["passed"]:
        raise typer.Exit(1)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C, a closed terminal and `kill` all leave by way of an exception, so that what was started is stopped."""
    import signal
    from types import FrameType

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _settings(dataset: str | None, home: Path | None, **options: object) -> "ServiceSettings":
    """The environment's settings with the command's on top. Raises ConfigError where no such data set is there."""
    import os

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # FAISS's and BLAS' threads read it when they are first loaded

    from recsys.settings import read_settings
    from serving.settings import ServiceSettings

    settings = read_settings(home)
    return ServiceSettings.build(settings, settings.paths().choose(dataset or settings.dataset), **options)
