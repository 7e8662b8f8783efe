"""Stage `evaluate`: the evaluation bundle, frozen at T2, replayed over every later event.

In: retrievers fitted through T2, the ranker of (T0, T2]. Out: the evaluation bundle with its metrics and ranks, and
the report: `reports/leaderboard.json`, tables, pictures and `report.html`. Absent: the production bundle.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines import retrievers
from pipelines.job import Job
from pipelines.naming import new_bundle_id
from recsys.atomic_io import read_json, write_json
from recsys.bundle import Bundle, BundleFacts, load_bundle, save_bundle, with_metrics
from recsys.errors import BundleError, MissingArtefactError
from recsys.evaluation.about import about, code_version, now_utc
from recsys.evaluation.calibration import Predicted, write_calibration
from recsys.evaluation.latency import TOTAL, Percentiles, measure_in_process
from recsys.evaluation.leaderboard import ALL, NDCG, Leaderboard, build_leaderboard, save_leaderboard
from recsys.evaluation.ranks import RANKS_FILE, write_ranks
from recsys.evaluation.replay import FULL_SYSTEM, MERGED, replay, test_events
from recsys.evaluation.report import write_report
from recsys.evaluation.tables import BUNDLE, leaderboard_text
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.ranking.calibration import Probabilities
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.recommender import RequestContext

LATENCY_REQUESTS, LATENCY_WARM_UP, LATENCY_K = 300, 30, 10


def run(job: Job) -> None:
    """Make the bundle, measure it, write the report, keep the metrics and the ranks in the bundle."""
    bundle_id = new_bundle_id(job.home.name, "evaluation")
    folder = job.home.bundles / bundle_id
    save_bundle(
        folder,
        facts_of(job, bundle_id, "evaluation", job.split.t2, None),
        job.catalogue,
        retrievers.load(job, "retrievers_t2"),
        BoostedRanker.load(job.work("ranker_t2")),
        LogisticRanker.load(job.work("ranker_t2")),
        job.config.recommender,
        Probabilities.load(job.work("ranker_t2")),
    )
    ranks = job.work(RANKS_FILE)
    metrics = measure(job, load_bundle(folder, ranker_threads=2), command="recsys train", ranks=ranks)
    with_metrics(folder, metrics, [ranks])
    write_json(job.work("evaluation.json"), {"bundle_id": bundle_id, "metrics": metrics})


def facts_of(job: Job, bundle_id: str, role: str, trained_through: int, sibling_id: str | None) -> BundleFacts:
    """What a bundle of this job says of itself; metrics come later."""
    return BundleFacts(
        bundle_id=bundle_id,
        dataset=job.tables.info,
        trained_through=trained_through,
        role=role,
        sibling_id=sibling_id,
        code_version=code_version(),
        created_utc=now_utc(),
        parameters=job.config.as_dict(),
    )


def evaluation_bundle(job: Job) -> Bundle:
    """The bundle that the last `evaluate` stage made. Raises MissingArtefactError where there is none."""
    path = job.work("evaluation.json")
    if not path.exists():
        raise MissingArtefactError(f"{job.home.name} has no evaluated model yet. Run `recsys train` first.")
    bundle = load_bundle(job.home.bundles / read_json(path)["bundle_id"], ranker_threads=2)
    require_same_data(job, bundle)
    return bundle


def require_same_data(job: Job, bundle: Bundle) -> None:
    """Raise BundleError where the bundle was made from other data than the tables now hold."""
    trained, now = bundle.facts.dataset.fingerprint, job.tables.info.fingerprint
    if trained != now:
        raise BundleError(
            f"{bundle.facts.bundle_id} was trained on data {trained[:12]}, the tables of {job.home.name} now hold "
            f"{now[:12]}. Run `recsys train`; where the gate refuses the new version, `recsys models promote` it."
        )


def measure(
    job: Job, bundle: Bundle, *, command: str, dump: Path | None = None, ranks: Path | None = None
) -> dict[str, object]:
    """Replay the whole leaderboard, write the report, return the metrics that the bundle carries.

    dump, ranks   where the full system's lists and ranks are written, if anywhere (`replay`, `evaluation.ranks`)
    """
    t2 = bundle.facts.trained_through
    snapshot_table = snapshots(job.tables.events)
    events = test_events(job.tables.events, t2)
    predicted = Predicted()
    methods = replay(
        bundle,
        job.histories,
        snapshot_table,
        events,
        dump=dump,
        observe=predicted.observe,
        progress=job.progress("evaluate: contexts replayed"),
    )
    leaderboard = build_leaderboard(methods, job.tables.info, job.split.t1, t2, system=FULL_SYSTEM)
    latency = _latency(job, bundle, snapshot_table)
    folder = job.home.reports
    folder.mkdir(parents=True, exist_ok=True)
    save_leaderboard(leaderboard, folder / "leaderboard.json")
    if ranks is not None:
        write_ranks(next(m.frame for m in methods if m.name == FULL_SYSTEM), ranks)
    retrieved = {m.name: m.frame["rank"].to_numpy(np.int64) for m in methods if m.kind == "single" or m.name == MERGED}
    facts = read_json(job.work("ranker_t2") / "facts.json")
    run = {**about(command), BUNDLE: bundle.facts.bundle_id}
    page = write_report(
        folder,
        leaderboard,
        compared=[FULL_SYSTEM, MERGED, *leaderboard.best_singles(2)],
        retrieval_ranks=retrieved,
        importance=facts["importance"],
        calibration=write_calibration(folder, predicted.measured(), job.tables.info, run),
        about={**run, "latency, one user in process, p50 / p99 ms": _shown(latency)},
        stages=stage_seconds(job),
    )
    job.report(leaderboard_text(leaderboard))
    job.report(f"report: {page}")
    return _carried(leaderboard, latency)


def stage_seconds(job: Job) -> dict[str, float]:
    """Seconds of every finished stage, in the order in which they finished."""
    records = [(read_json(path), path.stem) for path in job.home.stages.glob("*.json")]
    finished = sorted(records, key=lambda r: r[0]["finished_utc"])
    return {name: float(record["seconds"]) for record, name in finished}


def _latency(job: Job, bundle: Bundle, snapshot_table: pd.DataFrame) -> dict[str, Percentiles]:
    """One user at a time, through the path that serves, for users spread over the test window."""
    events = test_events(job.tables.events, bundle.facts.trained_through)
    chosen = events.iloc[np.linspace(0, len(events) - 1, min(LATENCY_REQUESTS, len(events))).astype(int)]
    states = [
        job.histories.states_at([user], [moment])
        for user, moment in zip(chosen["user_id"], chosen["timestamp"], strict=True)
    ]
    day = int(day_of(int(events["timestamp"].iloc[-1])))
    context = RequestContext(ItemStatsTimeline(bundle.recommender.catalogue, snapshot_table).as_of(day))
    single = load_bundle(bundle.folder, ranker_threads=1).recommender
    return measure_in_process(single, states, context, LATENCY_K, n=LATENCY_REQUESTS, warmup=LATENCY_WARM_UP)


def _shown(latency: dict[str, Percentiles]) -> str:
    return f"{latency[TOTAL].p50_ms:.1f} / {latency[TOTAL].p99_ms:.1f}"


def _carried(leaderboard: Leaderboard, latency: dict[str, Percentiles]) -> dict[str, object]:
    """What a bundle says of its quality: the full system's metrics, the retrieval order's NDCG@10, latency."""
    full = leaderboard.method(FULL_SYSTEM)
    overall = full.segments[ALL]
    merged = leaderboard.method(MERGED).overall[NDCG]
    return {
        **{name: asdict(value) for name, value in overall.metrics.items() if value is not None},
        "retrieval_ndcg@10": merged and asdict(merged),
        "coverage@10": full.coverage,
        "latency_p50_ms": latency[TOTAL].p50_ms,
        "latency_p99_ms": latency[TOTAL].p99_ms,
        "n_events": overall.n_events,
        "n_users": overall.n_users,
    }
