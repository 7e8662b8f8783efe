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
    since: Annotated[datetime | None, typer.Option(help="Only answers received from then on, UTC.")] = None,
    max_mismatch: Annotated[float, typer.Option(min=0, max=1, help="Share of the answers that may differ.")] = 0.0,
    home: HomeFolder = None,
) -> None:
    """Recompute logged answers from the data set and the event table, and compare them to the bit.

    Names the features that differ, in how many answers, and where most. Writes skew.txt and skew.json to the data set's
    reports. Ends with exit code 1 where more differs than may, or less than half could be compared.

    Example: `recsys skew --since 2026-11-21`
    """
    import os

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the service: sums depend on how they are cut
    from pipelines.monitoring.skew import check_home
    from recsys.settings import read_settings

    moment = 0.0 if since is None else since.replace(tzinfo=since.tzinfo or UTC).timestamp()
    settings = read_settings(home)
    chosen = settings.paths().choose(dataset or settings.dataset)
    report = check_home(chosen, settings, since=moment)
    typer.echo(report.text(), nl=False)
    typer.echo(f"report: {chosen.reports / 'skew.json'}", err=True)
    if failures := report.failures(max_mismatch):
        typer.echo(f"recsys skew: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)


@logs.command()
def join(
    dataset: Dataset = None,
    out: Annotated[Path | None, typer.Option(help="Default: impressions.parquet in the reports.")] = None,
    horizon_hours: Annotated[float, typer.Option(min=0, help="How long after an answer an event counts.")] = 24.0,
    home: HomeFolder = None,
) -> None:
    """Join logged answers with later events: labelled impressions, with the features that the ranker saw.

    Prints how many were watched or rated, by position.

    Example: `recsys logs join --out impressions.parquet`
    """
    import time

    from recsys.atomic_io import replacing_file
    from recsys.monitoring.outcomes import outcomes, summary
    from recsys.monitoring.prediction_log import predictions_folder, read_answers
    from recsys.settings import read_settings

    settings = read_settings(home)
    chosen = settings.paths().choose(dataset or settings.dataset)
    target, horizon_s = out or chosen.reports / "impressions.parquet", int(horizon_hours * 3_600)
    answers = read_answers(predictions_folder(chosen))
    impressions, found = outcomes(answers, settings.event_table(chosen), until=int(time.time()), horizon_s=horizon_s)
    with replacing_file(target) as beside:
        impressions.to_parquet(beside, index=False, compression="zstd")
    typer.echo(summary(impressions, found), nl=False)
    typer.echo(f"written to {target}", err=True)
