"""Stage `evaluate`: the bundle frozen at T2, replayed over every later event; `recsys evaluate` does it again.

It leaves the metrics and ranks in the bundle, and the report in `reports/`.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.bundles import evaluation_bundle, write_bundle
from pipelines.config import PipelineConfig
from pipelines.stage_runner import Report, progress, stage_seconds
from pipelines.training_set import TrainingSet
from recsys.atomic_io import read_json, write_json
from recsys.bundle import Bundle, load_bundle, with_metrics
from recsys.columns import RANK, TIMESTAMP, USER_ID
from recsys.evaluation.about import about
from recsys.evaluation.calibration import Predicted, write_calibration
from recsys.evaluation.latency import TOTAL, Percentiles, measure_in_process
from recsys.evaluation.leaderboard import ALL, NDCG, build_leaderboard
from recsys.evaluation.ranks import RANKS_FILE, write_ranks
from recsys.evaluation.replay import FULL_SYSTEM, MERGED, replay, test_events
from recsys.evaluation.report import write_report
from recsys.evaluation.study import StudyRun
from recsys.evaluation.tables import BUNDLE, leaderboard_markdown
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.promotion_gate import RANKER_GAIN, RETRIEVAL_NDCG
from recsys.recommender import RequestContext
from recsys.threads import limited
from recsys.workspace import DatasetWorkspace

LATENCY_REQUESTS, LATENCY_WARM_UP, LATENCY_K = 300, 30, 10


def run(data: TrainingSet, config: PipelineConfig, home: DatasetWorkspace, report: Report) -> None:
    """Make the bundle, measure it, write the report, keep the metrics and the ranks in the bundle."""
    folder = write_bundle(home, data, config, "evaluation", "t2", data.split.t2)
    ranks = home.work / RANKS_FILE
    metrics = measure(data, load_bundle(folder), home, "recsys train", report, ranks=ranks)
    with_metrics(folder, metrics, [ranks])
    write_json(home.work / "evaluation.json", {"bundle_id": folder.name})


def evaluate(data: TrainingSet, home: DatasetWorkspace, report: Report, dump: Path | None = None) -> None:
    """Measure the evaluated bundle again; write the full system's lists to `dump`, if anywhere."""
    measure(data, evaluation_bundle(home, data), home, "recsys evaluate", report, dump=dump)
    if dump is not None:
        report(f"lists of every test event: {dump}")


@limited(1)
def measure(
    data: TrainingSet,
    bundle: Bundle,
    home: DatasetWorkspace,
    command: str,
    report: Report,
    *,
    dump: Path | None = None,
    ranks: Path | None = None,
) -> dict[str, object]:
    """Replay the whole leaderboard, write the report, return the metrics that the bundle carries.

    dump, ranks   where the full system's lists and ranks are written, if anywhere (`replay`, `evaluation.ranks`)
    """
    t2 = bundle.facts.trained_through
    snapshot_table = snapshots(data.tables.events)
    events = test_events(data.tables.events, t2)
    predicted = Predicted()
    replayed = replay(
        bundle,
        data.histories,
        snapshot_table,
        events,
        dump=dump,
        observe=predicted.observe,
        progress=progress(report, "evaluate: contexts replayed"),
    )
    leaderboard = build_leaderboard(replayed, data.tables.info, data.split.t1, t2, system=FULL_SYSTEM)
    latency = _latency(data, bundle, events, snapshot_table)
    if ranks is not None:
        write_ranks(replayed.events.assign(**{RANK: replayed.ranks(FULL_SYSTEM)}), ranks)
    run = about(command)
    calibration = predicted.measured(StudyRun(data.tables.info, run, bundle.facts.bundle_id))
    page = write_report(
        home.reports,
        leaderboard,
        compared=[FULL_SYSTEM, MERGED, *leaderboard.best_singles(2)],
        retrieval_ranks={m.name: m.ranks for m in replayed.methods if m.kind == "single" or m.name == MERGED},
        importance=read_json(home.work / "ranker_t2" / "facts.json")["importance"],
        calibration=write_calibration(home.reports, calibration),
        about={
            **run,
            BUNDLE: bundle.facts.bundle_id,
            "latency, one user in process, p50 / p99 ms": f"{latency.p50_ms:.1f} / {latency.p99_ms:.1f}",
        },
        stages=stage_seconds(home.stages),
    )
    report(leaderboard_markdown(leaderboard))
    report(f"report: {page}")
    full = leaderboard.method(FULL_SYSTEM)
    overall = full.segments[ALL]
    merged, gain = leaderboard.method(MERGED).overall[NDCG], leaderboard.difference(MERGED)
    return {
        **{name: asdict(value) for name, value in overall.metrics.items() if value is not None},
        RETRIEVAL_NDCG: merged and asdict(merged),
        RANKER_GAIN: {end: getattr(gain, end) for end in ("mean", "low", "high")},
        "coverage@10": full.beyond_accuracy.coverage,
        "latency_p50_ms": latency.p50_ms,
        "latency_p99_ms": latency.p99_ms,
        "n_events": overall.n_events,
        "n_users": overall.n_users,
    }


def _latency(data: TrainingSet, bundle: Bundle, events: pd.DataFrame, snapshot_table: pd.DataFrame) -> Percentiles:
    """One user at a time, through the path that serves, for users spread over the test window."""
    chosen = events.iloc[np.linspace(0, len(events) - 1, min(LATENCY_REQUESTS, len(events))).astype(int)]
    moments = zip(chosen[USER_ID], chosen[TIMESTAMP], strict=True)
    states = [data.histories.states_at([user], [moment]) for user, moment in moments]
    day = int(day_of(int(events[TIMESTAMP].iloc[-1])))
    context = RequestContext(ItemStatsTimeline(bundle.recommender.catalogue, snapshot_table).as_of(day))
    return measure_in_process(
        bundle.recommender, states, context, LATENCY_K, n=LATENCY_REQUESTS, warmup=LATENCY_WARM_UP
    )[TOTAL]
