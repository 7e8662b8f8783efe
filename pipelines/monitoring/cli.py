"""The commands that look back on what was served: skew, logs.

Stage: the edge. In: argv and `recsys.settings`. Out: calls into the checks, text on stdout (results) and stderr
(progress). Absent: logic. Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli import Dataset, HomeFolder
from recsys.evaluation.about import command_line

app = typer.Typer(no_args_is_help=True)
logs = typer.Typer(no_args_is_help=True, help="What was answered and what happened next. Example: `recsys logs join`.")
app.add_typer(logs, name="logs")


@app.command()
def skew(
    dataset: Dataset = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only answers received since this moment, UTC. Default: all.")
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Look at so many calls at most, the oldest first.")] = None,
    max_mismatch: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the answers that may differ without exit code 1.")
    ] = 0.0,
    max_left_out: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the answers that may lack a comparison of features without exit code 1. Further pages and "
            "answers to a history of the request, which never have one, do not count.",
        ),
    ] = 0.5,
    max_psi: Annotated[
        float | None, typer.Option(min=0, help="Fail where a feature's PSI exceeds this. Default: it only warns.")
    ] = None,
    drift: Annotated[
        bool, typer.Option("--drift/--no-drift", help="Compare distributions with the ranker's training contexts too.")
    ] = True,
    home: HomeFolder = None,
) -> None:
    """Recompute the features of logged answers from raw events and compare them to the bit.

    Names what differs and the likely cause. Writes skew.txt, skew.json and skew.html to the data set's reports. Ends
    with exit code 1 where more differs than is allowed, or less could be compared.

    Example: `recsys skew --since 2026-11-21`
    """
    import os
    from datetime import UTC

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the service: sums depend on how they are cut
    from pipelines.monitoring import skew as checking
    from pipelines.monitoring import skew_report
    from pipelines.training import open_job
    from recsys.settings import read_settings

    job = open_job(dataset, read_settings(home))
    result = checking.run(
        job,
        since=0 if since is None else int(since.replace(tzinfo=since.tzinfo or UTC).timestamp()),
        most=most,
        drift=drift,
        command=command_line(sys.argv[1:]),
    )
    checking.write(job, result)
    print(skew_report.text(result), end="")
    job.report(f"report: {job.home.reports / 'skew.html'}")
    failed = checking.failures(result, most_mismatches=max_mismatch, most_left_out=max_left_out, most_psi=max_psi)
    for why in failed:
        typer.echo(f"recsys skew: {why}", err=True)
    if failed:
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
    """Join logged answers with later events: labelled impressions, with the columns of the ranker's training table.

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
    summary = joined(
        predictions_folder(chosen), chosen.events, target, until=int(time.time()), horizon_s=int(horizon_hours * 3_600)
    )
    print(summary.text(), end="")
    typer.echo(f"written to {target}", err=True)
