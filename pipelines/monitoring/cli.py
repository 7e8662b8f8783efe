"""The commands that look back on what was served: skew, logs."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli import Dataset, HomeFolder

app = typer.Typer(no_args_is_help=True)
logs = typer.Typer(no_args_is_help=True, help="What was answered and what happened next. Example: `recsys logs join`.")
app.add_typer(logs, name="logs")


@app.command()
def skew(
    dataset: Dataset = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only answers received since this moment, UTC. Default: all.")
    ] = None,
    max_mismatch: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the answers that may differ without exit code 1.")
    ] = 0.0,
    max_left_out: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the answers that may lack features to compare without exit code 1, but for those that never "
            "have any: further pages, and answers to a history of the request.",
        ),
    ] = 0.5,
    max_psi: Annotated[
        float | None, typer.Option(min=0, help="Fail where a feature's PSI exceeds this. Default: it only warns.")
    ] = None,
    drift: Annotated[bool, typer.Option("--drift/--no-drift", help="Compare distributions with training too.")] = True,
    home: HomeFolder = None,
) -> None:
    """Recompute logged answers from the data set and the event table, and compare them to the bit.

    Names the features that differ, in how many answers, and where most. Writes skew.txt and skew.json to the data set's
    reports. Ends with exit code 1 where more differs than is allowed, or less could be compared.

    Example: `recsys skew --since 2026-11-21`
    """
    import os

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the service: sums depend on how they are cut
    from pipelines.monitoring.run import check_home, write
    from recsys.settings import read_settings

    moment = 0.0 if since is None else since.replace(tzinfo=since.tzinfo or UTC).timestamp()
    settings = read_settings(home)
    chosen = settings.paths().choose(dataset or settings.dataset)
    report = check_home(chosen, settings, since=moment, drift=drift)
    write(report, chosen.reports)
    typer.echo(report.text(), nl=False)
    typer.echo(f"report: {chosen.reports / 'skew.json'}", err=True)
    failures = report.failures(max_mismatch=max_mismatch, max_left_out=max_left_out, max_psi=max_psi)
    for why in failures:
        typer.echo(f"recsys skew: {why}", err=True)
    if failures:
        raise typer.Exit(1)


@logs.command()
def join(
    dataset: Dataset = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to. Default: reports/impressions.parquet of the data set.")
    ] = None,
    horizon_hours: Annotated[
        float, typer.Option(min=0.0, help="An event counts for an answer that is at most so old.")
    ] = 24.0,
    home: HomeFolder = None,
) -> None:
    """Join logged answers with later events: labelled impressions, with the features that the ranker saw.

    Prints how many were watched or rated, by position.

    Example: `recsys logs join --out impressions.parquet`
    """
    import time

    from pipelines.monitoring.join import join as joined
    from recsys.monitoring.prediction_log import predictions_folder
    from recsys.settings import read_settings

    settings = read_settings(home)
    chosen = settings.paths().choose(dataset or settings.dataset)
    target = out or chosen.reports / "impressions.parquet"
    folder, horizon_s = predictions_folder(chosen), int(horizon_hours * 3_600)
    summary = joined(folder, settings.event_table(chosen), target, until=int(time.time()), horizon_s=horizon_s)
    typer.echo(summary.text(), nl=False)
    typer.echo(f"written to {target}", err=True)
