"""Stages `production` and `register`: the bundle that serves, and its version in the registry.

In: retrievers through the last event and the ranker of the last window (or, with --no-refit, those of the evaluation),
the evaluation bundle with its metrics and ranks. Out: the production bundle, a registered version, perhaps a new
champion. Absent: evaluation; a production version carries its sibling's metrics and ranks, and says so.
"""

from dataclasses import replace

from pipelines import retrievers
from pipelines.evaluation import facts_of
from pipelines.job import Job
from pipelines.naming import new_bundle_id
from recsys.atomic_io import read_json, write_json
from recsys.bundle import save_bundle
from recsys.errors import MissingArtefactError
from recsys.evaluation.ranks import RANKS_FILE
from recsys.ranking.calibration import Probabilities
from recsys.ranking.ranker import BoostedRanker, LogisticRanker

PICTURES = (
    *("leaderboard.json", "leaderboard.txt", "leaderboard.png", "retrieval.png", "importance.png"),
    *("cohorts.md", "cohorts.png", "beyond_accuracy.md"),
    *("calibration.json", "calibration.md", "calibration.png", "report.html"),
)


def run(job: Job) -> None:
    """Write the production bundle. Raises MissingArtefactError where the evaluation has left no ranks."""
    evaluation = read_json(job.work("evaluation.json"))
    ranks = job.home.bundles / evaluation["bundle_id"] / RANKS_FILE
    if not ranks.exists():
        raise MissingArtefactError(f"{ranks} is not there. Run `recsys train --only evaluate --force` first.")
    refit = job.config.refit
    bundle_id = new_bundle_id(job.home.name, "production")
    facts = facts_of(job, bundle_id, "production", job.split.end if refit else job.split.t2, evaluation["bundle_id"])
    ranker = job.work("ranker_all" if refit else "ranker_t2")
    save_bundle(
        job.home.bundles / bundle_id,
        replace(facts, metrics=evaluation["metrics"]),
        job.catalogue,
        retrievers.load(job, "retrievers_all" if refit else "retrievers_t2"),
        BoostedRanker.load(ranker),
        LogisticRanker.load(ranker),
        job.config.recommender,
        Probabilities.load(ranker),
        [ranks],
    )
    write_json(job.work("production.json"), {"bundle_id": bundle_id})


def register(job: Job) -> None:
    """Register the pair, ask the gate, promote if it passes."""
    evaluation = job.home.bundles / read_json(job.work("evaluation.json"))["bundle_id"]
    production = job.home.bundles / read_json(job.work("production.json"))["bundle_id"]
    version = job.registry.register(
        production,
        evaluation_dir=evaluation,
        report_files=[path for name in PICTURES if (path := job.home.reports / name).exists()],
        tags={f"seconds.{stage}": f"{seconds:.1f}" for stage, seconds in job.seconds.items()},
    )
    result = job.registry.judge(version.version, latency_budget_ms=job.config.latency_budget_ms)
    for check in result.checks:
        job.report(f"gate: {'ok  ' if check.passed else 'FAIL' if check.decides else 'warn'} {check.sentence}")
    if result.passed:
        job.registry.promote(version.version)
        job.report(f"version {version.version} of {job.registry.model_name} is champion")
    else:
        job.report(f"version {version.version} of {job.registry.model_name} stays challenger")
    write_json(job.work("registered.json"), {"version": version.version, "champion": result.passed})
