"""`recsys retrain`: look at the policy, train, and lead the new version on. One run at a time.

All that a run must remember is in the registry. It may be killed at any moment; the next one goes on.
"""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import pandas as pd

from pipelines import production
from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.retraining.comparison import with_newest_test
from pipelines.retraining.policy import POLICY_FILE, RetrainPolicy, Situation, decide, read_policy
from pipelines.retraining.steps import FINAL, TRAINED, advance, at, champion_of, on_its_way
from pipelines.stage_runner import run_stages, say, stage_seconds
from pipelines.stages import stages
from recsys.atomic_io import fingerprint_value, read_json
from recsys.errors import ConfigError, DataError, RecsysError
from recsys.events import RATING_KIND
from recsys.experiments.effects import Effect, effect
from recsys.monitoring.outcomes import outcomes, user_totals
from recsys.monitoring.prediction_log import predictions_folder, read_answers
from recsys.registry import VersionInfo
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace


def watch(dataset: str | None, settings: Settings, every_s: float, policy_file: Path | None) -> None:
    """`once`, again and again. What fails is said and tried again: the champion serves meanwhile."""
    while True:
        try:
            once(dataset, settings, policy_file)
        except RecsysError as error:
            say(f"retrain: {error}")
        time.sleep(every_s)


def once(
    dataset: str | None,
    settings: Settings,
    policy_file: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> VersionInfo | None:
    """Lead the version that is on its way as far as it can go now; where there is none, train one if the policy says
    so. The version; None where nothing was to do. Raises ConfigError where another run is under way."""
    home = settings.paths().choose(dataset or settings.dataset)
    policy = read_policy(policy_file or home.root / POLICY_FILE)
    with alone(home), contextlib.ExitStack() as stack:

        def opened(later_ratings: Literal["taken", "new"]) -> Pipeline:
            budget_ms = policy.latency_budget_ms
            pipeline = open_pipeline(home.name, settings, later_ratings=later_ratings, latency_budget_ms=budget_ms)
            stack.callback(pipeline.close)
            return pipeline

        pipeline = opened("taken")
        version = on_its_way(pipeline.registry)
        if version is None:
            situation = observe(pipeline, policy, clock())
            reasons = "; ".join(decide(policy, situation))
            pipeline.report(f"retrain: {reasons or f'not now ({situation.new_events:,} new events)'}")
            if not reasons:
                return None
            pipeline = opened("new")
            version = train_version(pipeline, reasons, clock)
        while version.steps[-1].name not in FINAL:
            then = advance(pipeline, version, policy, clock())
            if then.steps == version.steps:  # it has to wait
                break
            version = then
        return version


@contextlib.contextmanager
def alone(home: DatasetWorkspace) -> Iterator[None]:
    """Hold the data set's lock, which the system takes back from a process that dies. Raises ConfigError where another
    holds it."""
    with (home.root / "retrain.lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"Another `recsys retrain` works on {home.name}. Wait for it, or stop it.") from None
        yield


def observe(pipeline: Pipeline, policy: RetrainPolicy, now: float) -> Situation:
    """What the policy decides by, at a moment in seconds UTC."""
    champion = champion_of(pipeline.registry)
    through = max((version.through_seq for version in pipeline.registry.versions()), default=0)
    new = sum(event.kind == RATING_KIND for event in pipeline.event_table.read(after=through))
    if champion is None:
        return Situation(None, new)
    moment_utc = champion.steps[0].moment_utc if champion.steps else champion.created_utc
    trained_at = datetime.fromisoformat(moment_utc).timestamp()
    report = pipeline.home.reports / "monitor.json"
    of_champion = report.exists() and report.stat().st_mtime > trained_at  # an older one is about a model before
    compared = read_json(report)["inputs"]["compared"] if of_champion else []
    drift = tuple(row["name"] for row in compared if row["alarm"])  # degraded answers are no reason to train
    rate = _liked_rate(pipeline, champion, policy, now) if new >= policy.fewest_new_events else None
    return Situation((now - trained_at) / 86_400, new, drift, rate)


def _liked_rate(pipeline: Pipeline, champion: VersionInfo, policy: RetrainPolicy, now: float) -> Effect | None:
    """Of what the champion showed: the last days against its time before. Users of both count as two: what they have in
    common makes the interval too wide, not too narrow."""
    rows = read_answers(predictions_folder(pipeline.home))
    rows = rows[rows["version"] == champion.version]
    if rows.empty:
        return None
    rows = outcomes(rows, pipeline.event_table, until=int(now))[0]
    rows = rows[rows["complete"]]
    recent = rows["received"] >= pd.Timestamp(now - policy.recent_days * 86_400, unit="s", tz="UTC")
    try:
        return effect(user_totals(rows[~recent], "liked"), user_totals(rows[recent], "liked"))
    except DataError:  # too few users in one of the two
        return None


def train_version(pipeline: Pipeline, reason: str, clock: Callable[[], float]) -> VersionInfo:
    """The stages of `recsys train` on the data set and the events so far, tested on what the champion has not seen; the
    version is registered, and judged later."""
    home = pipeline.home
    data = with_newest_test(pipeline.data, champion_of(pipeline.registry))
    pipeline = replace(pipeline, data=data)

    def register() -> None:
        bundle_id = read_json(home.work / "production.json")["bundle_id"]
        if any(version.bundle_id == bundle_id for version in pipeline.registry.versions()):
            return  # the run before was killed just after
        production.register_pair(home, pipeline.registry, stage_seconds(home.stages), at(TRAINED, clock(), reason).tag)

    in_order = [replace(stage, run=register) if stage.name == "register" else stage for stage in stages(pipeline)]
    run_stages(in_order, home.stages, fingerprint_value([data.tables.info.fingerprint, asdict(data.split)]), say)
    version = on_its_way(pipeline.registry)
    if version is None:
        raise DataError("The same events were trained on before, and that version came to its end.")
    return version
