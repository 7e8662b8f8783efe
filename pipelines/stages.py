"""The whole offline track in one list. Read it top to bottom; each line names the module that does the work.

Stage: all of the offline track. In: `refit`. Out: the list of `Stage`s. Absent: how a stage runs or is skipped (`job`).

Before the first stage, `recsys data` has written the typed tables. T0, T1, T2 are the cutoffs of `recsys.data.split`.
"""

from pathlib import Path

from pipelines import evaluation, features, production, rankers, retrievers
from pipelines.job import Job, Stage
from recsys.atomic_io import read_json


def _bundle(job: Job, record: str) -> list[Path]:
    path = job.work(record)
    return [path, *([job.home.bundles / read_json(path)["bundle_id"]] if path.exists() else [])]


FEATURES = Stage(
    "features",
    "user states and daily item statistics into Feast",
    features.run,
    (),
    lambda c: [c.ranker.max_contexts, c.ranker.seed, c.feature_store],
    features.outputs,
)
RETRIEVERS_T0 = Stage(
    "retrievers_t0",
    "retrievers on events up to T0; how many epochs, by the window (T0, T1]",
    retrievers.fit_t0,
    (),
    lambda c: [c.tower, c.retrievers, c.index],
    lambda job: [job.work("retrievers_t0")],
)
RETRIEVERS_T1 = Stage(
    "retrievers_t1",
    "retrievers on events up to T1",
    retrievers.fit_t1,
    ("retrievers_t0",),
    lambda c: [c.retrievers, c.index],
    lambda job: [job.work("retrievers_t1")],
)
RANKER_T2 = Stage(
    "ranker_t2",
    "ranker on what earlier retrievers retrieve for the windows (T0, T1] and (T1, T2]",
    rankers.fit_t2,
    ("features", "retrievers_t0", "retrievers_t1"),
    lambda c: [c.ranker, c.recommender],
    lambda job: [job.work("ranker_t2")],
)
RETRIEVERS_T2 = Stage(
    "retrievers_t2",
    "the same retrievers on events up to T2",
    retrievers.fit_t2,
    ("retrievers_t0",),
    lambda c: [c.retrievers, c.index],
    lambda job: [job.work("retrievers_t2")],
)
EVALUATE = Stage(
    "evaluate",
    "bundle frozen at T2, replayed over every later event",
    evaluation.run,
    ("ranker_t2", "retrievers_t2"),
    lambda c: [c.recommender],
    lambda job: [*_bundle(job, "evaluation.json"), job.home.reports / "report.html"],
)
RANKER_ALL = Stage(
    "ranker_all",
    "production: ranker on the windows (T1, T2] and (T2, end]",
    rankers.fit_all,
    ("features", "retrievers_t1", "retrievers_t2"),
    lambda c: [c.ranker, c.recommender],
    lambda job: [job.work("ranker_all")],
)
RETRIEVERS_ALL = Stage(
    "retrievers_all",
    "production: retrievers on all events",
    retrievers.fit_all,
    ("retrievers_t0",),
    lambda c: [c.retrievers, c.index],
    lambda job: [job.work("retrievers_all")],
)


def stages(refit: bool) -> list[Stage]:
    """The stages in order. Without `refit` the evaluated model itself goes into production."""
    refitted = [RANKER_ALL, RETRIEVERS_ALL] if refit else []
    last = Stage(
        "production",
        "the bundle that serves, carrying its evaluated sibling's metrics",
        production.run,
        ("evaluate", *(s.name for s in refitted)),
        lambda c: [c.refit],
        lambda job: _bundle(job, "production.json"),
    )
    register = Stage(
        "register",
        "a version in MLflow; the gate decides whether it becomes champion",
        production.register,
        ("production",),
        lambda c: [c.latency_budget_ms],
        lambda job: [job.work("registered.json")],
    )
    return [FEATURES, RETRIEVERS_T0, RETRIEVERS_T1, RANKER_T2, RETRIEVERS_T2, EVALUATE, *refitted, last, register]
