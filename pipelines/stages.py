"""The whole offline track in one list. Read it top to bottom; each entry names the module that does the work.

Before the first stage, `recsys data` has written the typed tables. T0, T1, T2 are the cutoffs of `recsys.data.split`;
`end` is the last event. How a stage runs or is skipped is in `stage_runner`.
"""

from collections.abc import Sequence
from pathlib import Path

from pipelines import evaluation, features, production, rankers, retrievers
from pipelines.pipeline import Pipeline
from pipelines.rankers import RankerWindow
from pipelines.stage_runner import Stage, run_stages, stage_seconds
from recsys.atomic_io import read_json

REFITTED = ("ranker_all", "retrievers_all")  # without `config.refit` the evaluated model itself goes into production


def stages(pipeline: Pipeline) -> list[Stage]:
    """The stages in order."""
    home, config, data, report = pipeline.home, pipeline.config, pipeline.data, pipeline.report
    work, split = home.work, data.split

    def refit_retrievers(name: str, through: int) -> None:
        epochs = retrievers.best_epochs(work / "retrievers_t0")
        retrievers.fit(data, config, through, epochs, work / name, report)

    def fit_ranker(name: str, windows: Sequence[RankerWindow]) -> None:
        rankers.fit(data, config, windows, pipeline.store, work / name, report)

    def bundles_of(record: Path) -> list[Path]:
        """The record of a stage that makes a bundle, and the bundles that it names."""
        named = read_json(record).values() if record.exists() else ()
        return [record, *(home.bundles / bundle_id for bundle_id in named)]

    in_order = [
        Stage(
            name="features",
            description="user states and daily item statistics into Feast",
            code=features,
            run=lambda: features.write(data, config.ranker, home, pipeline.store, pipeline.event_table, report),
            settings=[config.ranker.max_contexts, config.ranker.seed, config.feature_store],
            outputs=lambda: features.outputs(home, pipeline.store),
        ),
        Stage(
            name="retrievers_t0",
            description="retrievers on events up to T0; how many epochs, by the window (T0, T1]",
            code=retrievers,
            run=lambda: retrievers.fit_first(data, config, work / "retrievers_t0", report),
            settings=[config.tower, config.retrievers, config.index],
            outputs=lambda: [work / "retrievers_t0"],
        ),
        Stage(
            name="retrievers_t1",
            description="retrievers on events up to T1",
            code=retrievers,
            run=lambda: refit_retrievers("retrievers_t1", split.t1),
            depends_on=("retrievers_t0",),
            outputs=lambda: [work / "retrievers_t1"],
        ),
        Stage(
            name="ranker_t2",
            description="ranker on what earlier retrievers retrieve for the windows (T0, T1] and (T1, T2]",
            code=rankers,
            run=lambda: fit_ranker("ranker_t2", rankers.windows_t2(work, split)),
            depends_on=("features", "retrievers_t0", "retrievers_t1"),
            settings=[config.ranker, config.recommender],
            outputs=lambda: [work / "ranker_t2"],
        ),
        Stage(
            name="retrievers_t2",
            description="the same retrievers on events up to T2",
            code=retrievers,
            run=lambda: refit_retrievers("retrievers_t2", split.t2),
            depends_on=("retrievers_t0",),
            outputs=lambda: [work / "retrievers_t2"],
        ),
        Stage(
            name="evaluate",
            description="bundle frozen at T2, replayed over every later event",
            code=evaluation,
            run=lambda: evaluation.run(data, config, home, report),
            depends_on=("ranker_t2", "retrievers_t2"),
            settings=[config.recommender],
            outputs=lambda: [*bundles_of(work / "evaluation.json"), home.reports / "report.html"],
        ),
        Stage(
            name="ranker_all",
            description="production: ranker on the windows (T1, T2] and (T2, end]",
            code=rankers,
            run=lambda: fit_ranker("ranker_all", rankers.windows_all(work, split)),
            depends_on=("features", "retrievers_t1", "retrievers_t2"),
            settings=[config.ranker, config.recommender],
            outputs=lambda: [work / "ranker_all"],
        ),
        Stage(
            name="retrievers_all",
            description="production: retrievers on all events",
            code=retrievers,
            run=lambda: refit_retrievers("retrievers_all", split.end),
            depends_on=("retrievers_t0",),
            outputs=lambda: [work / "retrievers_all"],
        ),
        Stage(
            name="production",
            description="the bundle that serves, carrying its evaluated sibling's metrics",
            code=production,
            run=lambda: production.run(data, config, home),
            depends_on=("evaluate", *(REFITTED if config.refit else ())),
            settings=[config.refit],
            outputs=lambda: bundles_of(work / "production.json"),
        ),
        Stage(
            name="register",
            description="a version in MLflow; the gate decides whether it becomes champion",
            code=production,
            run=lambda: production.register(
                home, pipeline.registry, stage_seconds(home.stages), config.latency_budget_ms, report
            ),
            depends_on=("production",),
            settings=[config.latency_budget_ms],
            outputs=lambda: [work / "registered.json"],
        ),
    ]
    return [stage for stage in in_order if config.refit or stage.name not in REFITTED]


def train(pipeline: Pipeline, *, only: str | None = None, force: bool = False) -> None:
    """`recsys train`: run the stages that are not up to date, or one stage, and say where the time went."""
    data, config, report = pipeline.data, pipeline.config, pipeline.report
    if config.tuned is not None:
        report(f"settings: tuned for {config.tuned} (docs/tuning.md); --no-tuned leaves them aside")
    info = data.tables.info
    later = f" and {data.n_later:,} later events" if data.n_later else ""
    report(f"training on {data.source.n_events:,} ratings of {info.label}{later}")
    try:
        seconds = run_stages(stages(pipeline), pipeline.home.stages, info.fingerprint, report, only=only, force=force)
    finally:
        pipeline.close()
    parts = ", ".join(f"{name} {s:.0f}" for name, s in seconds.items())
    report(f"where the time went, seconds: {parts}; {sum(seconds.values()):.0f} in all")
