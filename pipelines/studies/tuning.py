"""`recsys tune`: a resumable hyper-parameter search on the validation window, one Optuna study a part.

A part is a retriever, the weights of the merge, the ranker or the two-tower model. Its trial 0 is the default. The
sampler is seeded by how many trials are complete, so that a stopped search goes on as if it had not been stopped.
Studies are kept in `work/tuning.db` under a key of whatever a trial's value depends on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import TrialState

from pipelines.config import RANKER, RRF, TOWER
from pipelines.pipeline import Pipeline
from pipelines.studies import objectives, tuning_report
from pipelines.studies.objectives import Batch, MergeTrials, RankerTrials
from pipelines.studies.tuning_report import Trials
from recsys.atomic_io import fingerprint_value, read_json
from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, POPULARITY, RETRIEVERS, TIMESTAMP, TWO_TOWER
from recsys.errors import ConfigError, MissingArtefactError
from recsys.evaluation.about import about
from recsys.evaluation.study import StudyRun
from recsys.events import sqlite_url
from recsys.recommender import RecommenderSettings
from recsys.retrieval.retrievers import KnownEvents, fit_retriever, load_retrievers

Settings = dict[str, Any]
Space = dict[str, BaseDistribution]

Objective = Callable[[Settings], float]

VERSION: Final = 1  # of the objectives: raise it where one of them changes its meaning
SEED: Final = 7

SPACES: Final[dict[str, Space]] = {
    EASE: {"regularisation": FloatDistribution(20, 5_000, log=True), "power": FloatDistribution(0.2, 2.0)},
    IALS: {
        "dim": IntDistribution(32, 256, step=32),
        "regularisation": FloatDistribution(1, 300, log=True),
        "alpha": FloatDistribution(0.3, 30, log=True),
        "iterations": IntDistribution(5, 30),
        "power": FloatDistribution(0.2, 2.0),
    },
    ITEM_KNN: {
        "shrinkage": FloatDistribution(0.5, 200, log=True),
        "neighbours": IntDistribution(20, 1_000, log=True),
        "power": FloatDistribution(0.2, 2.5),
    },
    COVISITATION: {
        "decay": FloatDistribution(0.5, 0.99),
        "damping": FloatDistribution(0.0, 1.0),
        "history_decay": FloatDistribution(0.4, 0.99),
    },
    POPULARITY: {"half_life_days": FloatDistribution(1, 1_000, log=True)},
    RANKER: {
        "leaves": IntDistribution(4, 31, log=True),
        "learning_rate": FloatDistribution(0.01, 0.2, log=True),
        "min_rows_in_leaf": IntDistribution(10, 500, log=True),
        "feature_fraction": FloatDistribution(0.3, 1.0),
        "l2": FloatDistribution(0.1, 100, log=True),
        "truncation": IntDistribution(10, 60),  # counts for the objective "lambdarank" alone
        "user_weight_power": FloatDistribution(0.0, 1.0),
    },
    TOWER: {
        "learning_rate": FloatDistribution(1e-3, 1e-2, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "id_dropout": FloatDistribution(0.0, 0.5),
        "dim": IntDistribution(16, 128, step=16),
    },
}
WEIGHT: Final = FloatDistribution(0.0, 1.5)
SINGLES: Final = tuple(name for name in RETRIEVERS if name in SPACES)
USUAL: Final = (*SINGLES, RRF, RANKER)
PARTS: Final = (*USUAL, TOWER)  # the two-tower model costs minutes a trial
OBJECTIVES: Final = {
    **dict.fromkeys(PARTS, "NDCG@10"),
    RRF: f"NDCG@10 + {objectives.RECALL_WEIGHT:g} · Recall@100",
}
NEEDS: Final = {RRF: ("retrievers_t1",), RANKER: ("retrievers_t0", "retrievers_t1")}  # what `recsys train` leaves


@dataclass(frozen=True)
class Part:
    """One study: its search space, its default, and `depends_on`, what else the value of a trial depends on.
    `prepare` does the costly work once and gives the objective."""

    name: str
    space: Space
    default: Settings
    depends_on: Any
    prepare: Callable[[], Objective]


def run(pipeline: Pipeline, parts: Sequence[str] = USUAL, *, trials: int) -> dict[str, Trials]:
    """Search each part until `trials` of it are complete, those of earlier runs counted, and write the reports. The
    pipeline's settings are the defaults that the search starts from.

    Raises, before the first trial, ConfigError for an unknown part, and MissingArtefactError where a part needs saved
    retrievers that are not there or are of other data.
    """
    if unknown := [name for name in parts if name not in PARTS]:
        raise ConfigError(f"tune: there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}.")
    chosen = [name for name in PARTS if name in parts]  # the merge uses the best settings of the retrievers
    report, folder = pipeline.report, pipeline.home.reports
    made: dict[str, Trials] = {}
    with _storage(pipeline.home.work) as storage:
        search = Search(pipeline, storage)
        for name in chosen:
            search.training_logs(name)
        for name in chosen:
            made[name] = search.run(name, trials)
            study_run = StudyRun(pipeline.data.source, about("recsys tune"))
            tuning_report.write(folder, study_run, pipeline.data.split, OBJECTIVES, made)
    report(f"tune: every trial in {folder / 'tuning.md'}, the best settings in tuned.json beside it")
    return made


@contextmanager
def _storage(work: Path) -> Iterator[optuna.storages.RDBStorage]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(sqlite_url(work / "tuning.db").render_as_string())
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


class Search:
    """The studies of one data set; nothing in it knows an event after T2."""

    def __init__(self, pipeline: Pipeline, storage: optuna.storages.RDBStorage) -> None:
        self.pipeline, self.config, self._storage = pipeline, pipeline.config, storage
        events = pipeline.data.tables.events
        self.data = pipeline.data.with_events(events[events[TIMESTAMP] <= pipeline.data.split.t2])

    @cached_property
    def known(self) -> KnownEvents:
        """What a retriever that is judged on the validation window is fitted on."""
        return KnownEvents.through(self.data.histories, len(self.data.catalogue), self.data.split.t1)

    @cached_property
    def validation(self) -> list[Batch]:
        return objectives.validation_batches(self.data)

    def run(self, name: str, trials: int) -> Trials:
        """Complete the part's study."""
        part, report = self.part(name), self.pipeline.report
        study = self._study(part)
        missing = trials - len(complete(study))
        report(f"tune: {name}, {max(missing, 0)} of {trials} trials to do")
        if missing > 0:
            objective, progress = part.prepare(), self.pipeline.progress(f"tune: trials of {name}")
            for done in range(1, missing + 1):
                count = len(complete(study))
                if count == 0:
                    study.enqueue_trial(part.default)
                study.sampler = optuna.samplers.TPESampler(seed=SEED + count, constant_liar=False)
                trial = study.ask(part.space)
                study.tell(trial, objective(trial.params))  # one that is interrupted never completes: it does not count
                progress(done, missing)
        made = complete(study)
        report(f"tune: {name}, {len(made)} trials: default {made[0].value:.4f}, best {study.best_value:.4f}")
        return made

    def training_logs(self, name: str) -> list[dict[str, Any]]:
        """Of the retrievers that the part reads. Raises MissingArtefactError where they are missing, or were fitted up
        to another moment."""
        logs = []
        for stage in NEEDS.get(name, ()):
            file = self.pipeline.home.work / stage / "log.json"
            log = read_json(file) if file.exists() else {}
            if log.get("cutoff") != getattr(self.data.split, stage.removeprefix("retrievers_")):
                problem = "was fitted on other data" if log else "is not there"
                raise MissingArtefactError(
                    f"tune: {name} cannot be searched yet: {file.parent} {problem}. Run `recsys train` first, or leave "
                    f"{name} out of --parts."
                )
            logs.append(log)
        return logs

    def part(self, name: str) -> Part:
        config, settings = self.config, self.config.recommender
        space = SPACES.get(name, {})
        if name == RRF:
            fits = {retriever: {**whole, **self._best(retriever)} for retriever, whole in config.retrievers.items()}
            names = [retriever for retriever in RETRIEVERS if retriever in fits or retriever == TWO_TOWER]
            weights: Settings = {retriever: float(settings.rrf_weights.get(retriever, 1.0)) for retriever in names}
            space, reads = dict.fromkeys(names, WEIGHT), [fits, settings.fetch]
            return Part(RRF, space, weights, reads, lambda: self._merge_objective(fits))
        if name == RANKER:
            whole = asdict(config.ranker)
            if whole["objective"] != "lambdarank":
                space = {key: distribution for key, distribution in space.items() if key != "truncation"}
            merged = replace(settings, rrf_weights={**settings.rrf_weights, **self._best(RRF)})
            default, reads = {key: whole[key] for key in space}, [whole, asdict(merged)]
            return Part(RANKER, space, default, reads, lambda: self._ranker_objective(merged))
        whole = asdict(config.tower) if name == TOWER else config.retrievers[name]

        def objective(values: Settings) -> float:
            if name == TOWER:
                return objectives.tower_ndcg(self.data, replace(config.tower, **values), self.pipeline.report)
            return objectives.retriever_ndcg(fit_retriever(name, self.known, {**whole, **values}), self.validation)

        return Part(name, space, {key: whole[key] for key in space}, whole, lambda: objective)

    def _merge_objective(self, fits: dict[str, Settings]) -> Objective:
        """Of the retrievers at the best settings so far, and the saved two-tower model: only the ratios of weights mean
        something, so that its own could not be placed afterwards."""
        saved = load_retrievers(self.pipeline.home.work / "retrievers_t1", self.data.catalogue)
        retrievers = [retriever for retriever in saved if retriever.name == TWO_TOWER]
        retrievers += [fit_retriever(name, self.known, fits[name]) for name in RETRIEVERS if name in fits]
        lists = MergeTrials(retrievers, self.validation, len(self.data.catalogue), self.config.recommender.fetch)
        return lambda weights: lists.value([weights[name] for name in lists.names])

    def _ranker_objective(self, recommender: RecommenderSettings) -> Objective:
        """On the retrievers as `recsys train` left them, merged by the best weights so far."""
        work, ranker = self.pipeline.home.work, self.config.ranker
        before, after = (load_retrievers(work / stage, self.data.catalogue) for stage in NEEDS[RANKER])
        progress = self.pipeline.progress("tune: contexts retrieved for the ranker's table")
        table = RankerTrials(self.data, before, after, ranker, recommender, progress)
        return lambda values: table.ndcg(replace(ranker, **values))

    def _study(self, part: Part) -> optuna.Study:
        space = {name: distribution_to_json(d) for name, d in part.space.items()}
        data, split = self.data.tables.info.fingerprint, asdict(self.data.split)
        logs = self.training_logs(part.name)
        key = fingerprint_value([VERSION, data, split, part.name, space, part.default, part.depends_on, logs])
        return optuna.create_study(
            storage=self._storage, study_name=f"{part.name}-{key[:16]}", direction="maximize", load_if_exists=True
        )

    def _best(self, name: str) -> Settings:
        """The best settings of a part so far; nothing where there is no trial."""
        trials = complete(self._study(self.part(name)))
        return dict(tuning_report.best_of(trials).params) if trials else {}


def complete(study: optuna.Study) -> Trials:
    """The trials that count, in the order in which they were made."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
