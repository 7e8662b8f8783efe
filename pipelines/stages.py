"""The whole offline track in one list. Read it top to bottom; each line names the module that does the work.

Stage: all of the offline track. In: `refit`. Out: the list of `Stage`s. Absent: how a stage runs or is skipped (`job`).

Before the first stage, `recsys data` has written the typed tables. T0, T1, T2 are the cutoffs of `recsys.data.split`.
"""

from pathlib import Path

from pipelines import evaluation, features, production, rankers, sources
from pipelines.job import Job, Stage
from recsys.artefacts import read_json


def _bundle(job: Job, record: str) -> list[Path]:
    path = job.work(record)
    return [path, *([job.home.bundles / read_json(path)["bundle_id"]] if path.exists() else [])]


FEATURES = Stage(
    "features",
    "user states and daily movie statistics into Feast",
    features.run,
    (),
    lambda c: [c.ranker.max_contexts, c.ranker.seed, c.feature_store],
    features.outputs,
)
SOURCES_T0 = Stage(
    "sources_t0",
    "candidate sources on events up to T0; how many epochs, by the window (T0, T1]",
    sources.fit_t0,
    (),
    lambda c: [c.tower, c.sources, c.index],
    lambda job: [job.work("sources_t0")],
)
SOURCES_T1 = Stage(
    "sources_t1",
    "candidate sources on events up to T1",
    sources.fit_t1,
    ("sources_t0",),
    lambda c: [c.sources, c.index],
    lambda job: [job.work("sources_t1")],
)
RANKER_T2 = Stage(
    "ranker_t2",
    "ranker on what earlier sources retrieve for the windows (T0, T1] and (T1, T2]",
    rankers.fit_t2,
    ("features", "sources_t0", "sources_t1"),
    lambda c: [c.ranker, c.recommender],
    lambda job: [job.work("ranker_t2")],
)
SOURCES_T2 = Stage(
    "sources_t2",
    "the same sources on events up to T2",
    sources.fit_t2,
    ("sources_t0",),
    lambda c: [c.sources, c.index],
    lambda job: [job.work("sources_t2")],
)
EVALUATE = Stage(
    "evaluate",
    "bundle frozen at T2, replayed over every later event",
    evaluation.run,
    ("ranker_t2", "sources_t2"),
    lambda c: [c.recommender],
    lambda job: [*_bundle(job, "evaluation.json"), job.home.reports / "report.html"],
)
RANKER_ALL = Stage(
    "ranker_all",
    "production: ranker on the windows (T1, T2] and (T2, end]",
    rankers.fit_all,
    ("features", "sources_t1", "sources_t2"),
    lambda c: [c.ranker, c.recommender],
    lambda job: [job.work("ranker_all")],
)
SOURCES_ALL = Stage(
    "sources_all",
    "production: sources on all events",
    sources.fit_all,
    ("sources_t0",),
    lambda c: [c.sources, c.index],
    lambda job: [job.work("sources_all")],
)


def stages(refit: bool) -> list[Stage]:
    """The stages in order. Without `refit` the evaluated model itself goes into production."""
    refitted = [RANKER_ALL, SOURCES_ALL] if refit else []
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
    return [FEATURES, SOURCES_T0, SOURCES_T1, RANKER_T2, SOURCES_T2, EVALUATE, *refitted, last, register]
