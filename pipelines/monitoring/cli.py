"""The commands that look back on what was served: monitor, skew, logs; and experiments on it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli import Dataset, HomeFolder, opened

app = typer.Typer(no_args_is_help=True)
logs = typer.Typer(no_args_is_help=True, help="What was answered and what happened next. Example: `recsys logs join`.")
app.add_typer(logs, name="logs")
experiment = typer.Typer(no_args_is_help=True, help="Compare versions or settings on people. Example: see `start`.")
app.add_typer(experiment, name="experiment")


@app.command()
def monitor(
    dataset: Dataset = None,
    days: Annotated[int, typer.Option(min=1, help="Length of the window.")] = 7,
    until: Annotated[datetime | None, typer.Option(help="Its end, UTC. Default: now.")] = None,
    false_alarms: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the reports of quiet weeks in which an input may alarm.")
    ] = 0.05,
    smallest_psi: Annotated[float, typer.Option(min=0, help="A smaller PSI is no alarm.")] = 0.2,
    max_degraded: Annotated[float, typer.Option(min=0, max=1, help="Share of answers that may be degraded.")] = 0.05,
    home: HomeFolder = None,
) -> None:
    """What the models were fed, what they answered, and what came of it, by version, position and cohort.

    Compares features, user mix, catalogue age and event rate with those of the training. Writes monitor.html,
    monitor.json and monitor.prom (gauges, which /metrics shows) to the data set's reports. Exit code 1 on an alarm.

    Example: `recsys monitor --days 7`
    """
    from pipelines.cli import opened
    from pipelines.monitoring import monitor_report
    from pipelines.monitoring.monitor import Thresholds

    pipeline = opened(dataset, home)
    thresholds = Thresholds(false_alarms, smallest_psi, degraded=max_degraded)
    report = monitor_report.monitor(pipeline, until, days, thresholds)
    typer.echo(monitor_report.text(report), nl=False)
    typer.echo(f"report: {pipeline.home.reports / 'monitor.html'}", err=True)
    pipeline.close()
    if report.alarms:
        raise typer.Exit(1)


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


@experiment.command("start")
def start_experiment(
    name: Annotated[str, typer.Argument(help="Its name; it also decides who gets which arm.")],
    arm: Annotated[
        list[str], typer.Option(help="name=share[,version=N][,diversity=X][,exploration=X]; first: control.")
    ],
    dataset: Dataset = None,
    home: HomeFolder = None,
) -> None:
    """Give each arm its share of the users, within seconds and without a restart.

    Example: `recsys experiment start variety --arm control=0.5 --arm varied=0.5,diversity=0.3`
    """
    from pipelines.experiments import parse_arm, start

    started = start(opened(dataset, home).registry, name, tuple(map(parse_arm, arm)))
    typer.echo(f"experiment {started.name} runs: {', '.join(f'{a.name} {a.share:.0%}' for a in started.arms)}")


@experiment.command("stop")
def stop_experiment(dataset: Dataset = None, home: HomeFolder = None) -> None:
    """End it: everybody is answered by the champion again. Its report stays to be had by its name.

    Example: `recsys experiment stop`
    """
    from pipelines.experiments import stop

    typer.echo(f"experiment {stop(opened(dataset, home).registry)} has ended")


@experiment.command("status")
def experiment_status(dataset: Dataset = None, home: HomeFolder = None) -> None:
    """What runs beside the champion.

    Example: `recsys experiment status`
    """
    traffic = opened(dataset, home).registry.traffic()
    running = traffic.experiment
    typer.echo(f"shadow      {'none' if traffic.shadow is None else f'version {traffic.shadow}'}")
    typer.echo(f"experiment  {'none' if running is None else running.name}")
    for arm in running.arms if running else ():
        version = "champion" if arm.version is None else f"version {arm.version}"
        typer.echo(f"  {arm.name}: {arm.share:.0%}, {version} {arm.settings or ''}")


@experiment.command("report")
def report_experiment(
    dataset: Dataset = None,
    horizon_hours: Annotated[float, typer.Option(min=0, help="How long after an answer an event counts.")] = 24.0,
    home: HomeFolder = None,
) -> None:
    """Effects of the running experiment with intervals, sample ratio, power, and a p-value that may be looked at daily.

    Writes experiment.json to the data set's reports. Ends with exit code 1 where users did not fall into the arms as
    planned.

    Example: `recsys experiment report`
    """
    import time
    from dataclasses import asdict

    from pipelines.experiments import BROKEN, report
    from recsys.atomic_io import write_json
    from recsys.errors import ConfigError
    from recsys.monitoring.outcomes import outcomes
    from recsys.monitoring.prediction_log import predictions_folder, read_answers
    from recsys.settings import read_settings

    settings, pipeline = read_settings(home), opened(dataset, home)
    running = pipeline.registry.traffic().experiment
    if running is None:
        raise ConfigError("no experiment is running; `recsys experiment start` begins one")
    answers = read_answers(predictions_folder(pipeline.home))
    table = settings.event_table(pipeline.home)
    rows, _ = outcomes(answers, table, until=int(time.time()), horizon_s=int(horizon_hours * 3_600))
    made = report(running, rows)
    write_json(pipeline.home.reports / "experiment.json", asdict(made))
    typer.echo(made.text(), nl=False)
    if made.sample_ratio_p < BROKEN:
        raise typer.Exit(1)
