"""The whole offline track in one list. Read it top to bottom; each entry names the module that does the work.

Before the first stage, `recsys data` has written the typed tables. T0, T1, T2 are the cutoffs of `recsys.data.split`;
`end` is the last event. How a stage runs or is skipped is in `stage_runner`.
"""

from collections.abc import Sequence
from pathlib import Path

from pipelines import evaluation, features, production, rankers, retrievers
from pipelines.pipeline import Pipeline
from pipelines.rankers import RankerWindow
from pipelines.stage_runner import Stage, stage_seconds
from recsys.atomic_io import read_json


def stages(pipeline: Pipeline) -> list[Stage]:
    """The stages in order. Without `config.refit` the evaluated model itself goes into production."""
    home, config, data, report = pipeline.home, pipeline.config, pipeline.data, pipeline.report
    work, split = home.work, data.split

    def fit_retrievers(name: str, through: int) -> None:
        retrievers.fit(
            data,
            through,
            epochs=retrievers.best_epochs(work / "retrievers_t0"),
            tower=config.tower,
            others=config.retrievers,
            index=config.index,
            folder=work / name,
            report=report,
        )

    def fit_ranker(name: str, windows: Sequence[RankerWindow]) -> None:
        rankers.fit(
            data,
            windows,
            store=pipeline.store,
            ranker=config.ranker,
            recommender=config.recommender,
            folder=work / name,
            report=report,
        )

    def bundle_files(record: Path) -> list[Path]:
        """The record of a bundle, and the bundles that it names."""
        named = read_json(record).values() if record.exists() else ()
        return [record, *(home.bundles / bundle_id for bundle_id in named)]

    write_features = Stage(
        name="features",
        description="user states and daily item statistics into Feast",
        code=features,
        run=lambda: features.write(
            data,
            home=home,
            store=pipeline.store,
            event_table=pipeline.event_table,
            ranker=config.ranker,
            report=report,
        ),
        settings=[config.ranker.max_contexts, config.ranker.seed, config.feature_store],
        outputs=lambda: features.outputs(home, pipeline.store),
    )
    retrievers_t0 = Stage(
        name="retrievers_t0",
        description="retrievers on events up to T0; how many epochs, by the window (T0, T1]",
        code=retrievers,
        run=lambda: retrievers.fit_first(
            data,
            tower=config.tower,
            others=config.retrievers,
            index=config.index,
            folder=work / "retrievers_t0",
            report=report,
        ),
        settings=[config.tower, config.retrievers, config.index],
        outputs=lambda: [work / "retrievers_t0"],
    )
    retrievers_t1 = Stage(
        name="retrievers_t1",
        description="retrievers on events up to T1",
        code=retrievers,
        run=lambda: fit_retrievers("retrievers_t1", split.t1),
        depends_on=("retrievers_t0",),
        outputs=lambda: [work / "retrievers_t1"],
    )
    ranker_t2 = Stage(
        name="ranker_t2",
        description="ranker on what earlier retrievers retrieve for the windows (T0, T1] and (T1, T2]",
        code=rankers,
        run=lambda: fit_ranker("ranker_t2", rankers.windows_t2(work, split)),
        depends_on=("features", "retrievers_t0", "retrievers_t1"),
        settings=[config.ranker, config.recommender],
        outputs=lambda: [work / "ranker_t2"],
    )
    retrievers_t2 = Stage(
        name="retrievers_t2",
        description="the same retrievers on events up to T2",
        code=retrievers,
        run=lambda: fit_retrievers("retrievers_t2", split.t2),
        depends_on=("retrievers_t0",),
        outputs=lambda: [work / "retrievers_t2"],
    )
    evaluate = Stage(
        name="evaluate",
        description="bundle frozen at T2, replayed over every later event",
        code=evaluation,
        run=lambda: evaluation.run(data, home=home, config=config, report=report),
        depends_on=("ranker_t2", "retrievers_t2"),
        settings=[config.recommender],
        outputs=lambda: [*bundle_files(work / "evaluation.json"), home.reports / "report.html"],
    )
    ranker_all = Stage(
        name="ranker_all",
        description="production: ranker on the windows (T1, T2] and (T2, end]",
        code=rankers,
        run=lambda: fit_ranker("ranker_all", rankers.windows_all(work, split)),
        depends_on=("features", "retrievers_t1", "retrievers_t2"),
        settings=[config.ranker, config.recommender],
        outputs=lambda: [work / "ranker_all"],
    )
    retrievers_all = Stage(
        name="retrievers_all",
        description="production: retrievers on all events",
        code=retrievers,
        run=lambda: fit_retrievers("retrievers_all", split.end),
        depends_on=("retrievers_t0",),
        outputs=lambda: [work / "retrievers_all"],
    )
    refitted = [ranker_all, retrievers_all] if config.refit else []
    produce = Stage(
        name="production",
        description="the bundle that serves, carrying its evaluated sibling's metrics",
        code=production,
        run=lambda: production.run(data, home=home, config=config),
        depends_on=("evaluate", *(stage.name for stage in refitted)),
        settings=[config.refit],
        outputs=lambda: bundle_files(work / "production.json"),
    )
    register = Stage(
        name="register",
        description="a version in MLflow; the gate decides whether it becomes champion",
        code=production,
        run=lambda: production.register(
            home=home,
            registry=pipeline.registry,
            seconds=stage_seconds(home.stages),
            latency_budget_ms=config.latency_budget_ms,
            report=report,
        ),
        depends_on=("production",),
        settings=[config.latency_budget_ms],
        outputs=lambda: [work / "registered.json"],
    )
    return [
        write_features,
        retrievers_t0,
        retrievers_t1,
        ranker_t2,
        retrievers_t2,
        evaluate,
        *refitted,
        produce,
        register,
    ]
