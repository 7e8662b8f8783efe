"""`recsys tune`: a bounded, resumable hyper-parameter search on the validation window, one Optuna study a part.

A part is a retriever, the weights of the merge, the ranker or the two-tower model. Its trial 0 is the default. The
sampler is seeded by how many trials are complete, so that a stopped search goes on as if it had not been stopped.
Studies are kept in `work/tuning.db` under a key of whatever a trial's value depends on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from pipelines.config import RANKER, RRF, TOWER
from pipelines.pipeline import Pipeline
from pipelines.studies import objectives, tuning_report
from pipelines.studies.objectives import Fusion, Past, RankerTrials
from pipelines.studies.tuning_report import Trial, TunedPart, TuningStudy
from recsys.atomic_io import fingerprint_files, fingerprint_value, read_json
from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, POPULARITY, RETRIEVERS, TWO_TOWER
from recsys.errors import ConfigError, MissingArtefactError
from recsys.evaluation.about import about
from recsys.evaluation.study import StudyRun
from recsys.retrieval.retrievers import fit_retriever, load_retrievers

Settings = dict[str, Any]
Space = dict[str, BaseDistribution]

VERSION: Final = 1  # of the objectives: raise it where one of them changes its meaning
NDCG: Final = "NDCG@10"
FUSED: Final = f"NDCG@10 + {objectives.RECALL_WEIGHT:g} · Recall@100"
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
        "leaves": IntDistribution(4, 63, log=True),
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


@dataclass(frozen=True)
class Part:
    """One study: its search space, its default, and `depends_on`, what else the value of a trial depends on.
    `prepare` does the costly work once and gives the objective."""

    name: str
    objective: str
    space: Space
    default: Settings
    depends_on: Any
    prepare: Callable[[], Callable[[Settings], float]]


def run(
    pipeline: Pipeline,
    parts: Sequence[str] = USUAL,
    *,
    trials: int,
    minutes: float | None = None,
    save: bool = False,
) -> TuningStudy:
    """Search each part until `trials` of it are complete, those of earlier runs counted, and write the reports. The
    pipeline's settings are the defaults that the search starts from.

    parts     of USUAL, what cannot run yet is left out with a line; of any other choice, it is refused
    minutes   for all parts together, shared evenly among those that are left; a trial that has begun is finished
    save      also keep the best settings of these parts in the repository, for `recsys train`
    Raises, before the first trial, ConfigError for an unknown part, and for `save` with data that are not an official
    data set or a file there that no training could use; MissingArtefactError where a part needs saved retrievers that
    are not there or are of other data.
    """
    if unknown := [name for name in parts if name not in PARTS]:
        raise ConfigError(f"tune: there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}.")
    if save:
        tuning_report.require_savable(pipeline)
    until = None if minutes is None else time.perf_counter() + 60 * minutes
    with _storage(pipeline.home.work) as storage:
        search = Search(pipeline, storage)
        # In the order of PARTS: the merge uses the best settings of the retrievers.
        chosen = search.runnable([name for name in PARTS if name in parts], skip=tuple(parts) == USUAL)
        for number, name in enumerate(chosen):
            now = time.perf_counter()
            search.run(name, trials, None if until is None else now + (until - now) / (len(chosen) - number))
            found = search.result()
            tuning_report.write(pipeline.home.reports, found)
    reports = pipeline.home.reports
    pipeline.report(f"tune: every trial in {reports / 'tuning.md'}, the best settings in tuned.json beside it")
    if save:
        tuning_report.save(pipeline, found, chosen)
    else:
        pipeline.report("tune: `recsys tune --save` copies them to where `recsys train` looks")
    return found


@contextmanager
def _storage(work: Path) -> Iterator[optuna.storages.RDBStorage]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{work / 'tuning.db'}")
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


class Search:
    """The studies of one data set."""

    def __init__(self, pipeline: Pipeline, storage: optuna.storages.RDBStorage) -> None:
        self.pipeline, self.config = pipeline, pipeline.config
        self.past = Past.of(pipeline.data.tables)
        self._storage = storage
        self._saved = cache(_saved)

    def runnable(self, names: Sequence[str], *, skip: bool) -> list[str]:
        """The parts that have what they need. Any other is left out with a line, or refused by MissingArtefactError."""
        able = []
        for name in names:
            try:
                self.part(name)
            except MissingArtefactError as error:
                if not skip:
                    raise MissingArtefactError(f"tune: {name} cannot be searched yet. {error}") from error
                self.pipeline.report(f"tune: {name} is left out. {error}")
            else:
                able.append(name)
        return able

    def run(self, name: str, trials: int, until: float | None) -> None:
        """Complete the part's study. `until` is a moment of the performance counter; at least one trial is made."""
        part, report = self.part(name), self.pipeline.report
        study = self._study(part)
        missing = trials - len(complete(study))
        if missing <= 0:
            report(f"tune: {name} has {len(complete(study))} trials, none to do")
            return
        report(f"tune: {name}, {missing} of {trials} trials to do")
        objective = part.prepare()
        progress = self.pipeline.progress(f"tune: trials of {name}")
        for done in range(1, missing + 1):
            count = len(complete(study))
            if count == 0:
                study.enqueue_trial(part.default)
            study.sampler = optuna.samplers.TPESampler(seed=SEED + count, constant_liar=False)
            trial = study.ask(part.space)
            study.tell(trial, objective(trial.params))  # one that is interrupted never completes, so it does not count
            progress(done, missing)
            if until is not None and time.perf_counter() >= until and done < missing:
                report(f"tune: {name} stops after its share of the minutes; the same command goes on")
                break
        made = complete(study)
        report(f"tune: {name}, {len(made)} trials: default {made[0].value:.4f}, best {study.best_value:.4f}")

    def result(self) -> TuningStudy:
        """Every part that has a complete trial under its present key."""
        found = {}
        for name in PARTS:
            try:
                part = self.part(name)
            except MissingArtefactError:
                continue  # its key needs what `recsys train` leaves
            trials = [
                Trial(t.values[0], t.duration.total_seconds() if t.duration else 0.0, dict(t.params))
                for t in complete(self._study(part))
            ]
            if trials:
                found[name] = TunedPart(part.objective, self._key(part), tuple(trials))
        split = self.past.split
        return TuningStudy(StudyRun(self.pipeline.data.source, about("recsys tune")), split.t1, split.t2, found)

    def part(self, name: str) -> Part:
        """The named study. Raises MissingArtefactError where it needs what is not there."""
        if name == RRF:
            return self._rrf_weights()
        if name == RANKER:
            return self._ranker()
        if name == TOWER:
            tower = self.config.tower
            return self._plain(
                TOWER,
                asdict(tower),
                lambda: lambda s: objectives.tower_ndcg(self.past, replace(tower, **s), self.pipeline.report),
            )
        whole = self.config.retrievers[name]

        def prepare() -> Callable[[Settings], float]:
            known, batches = self.past.known, self.past.validation
            return lambda s: objectives.retriever_ndcg(fit_retriever(name, known, {**whole, **s}), batches)

        return self._plain(name, whole, prepare)

    def _plain(self, name: str, whole: Settings, prepare: Callable[[], Callable[[Settings], float]]) -> Part:
        return Part(name, NDCG, SPACES[name], {key: whole[key] for key in SPACES[name]}, whole, prepare)

    def _rrf_weights(self) -> Part:
        """The retrievers at the best settings so far, and the saved two-tower model. There is no search without that
        one: only the ratios of weights mean something, so its own could not be placed afterwards."""
        settings, folder = self.config.recommender, self.pipeline.home.work / "retrievers_t1"
        fits = {name: {**whole, **self._best(name)} for name, whole in self.config.retrievers.items()}
        names = [name for name in RETRIEVERS if name in fits or name == TWO_TOWER]
        files = self._saved(folder, self.past.split.t1)[TWO_TOWER]

        def prepare() -> Callable[[Settings], float]:
            past = self.past
            ready = [r for r in load_retrievers(folder, past.catalogue) if r.name == TWO_TOWER]
            ready += [fit_retriever(name, past.known, fits[name]) for name in names if name in fits]
            lists = Fusion(ready, past.validation, len(past.catalogue), settings.fetch)
            return lambda s: lists.value([s[name] for name in lists.names])

        default: Settings = {name: float(settings.rrf_weights.get(name, 1.0)) for name in names}
        return Part(RRF, FUSED, dict.fromkeys(names, WEIGHT), default, [fits, files, settings.fetch], prepare)

    def _ranker(self) -> Part:
        """On the retrievers as `recsys train` left them, merged by the best weights so far."""
        split, config, work = self.past.split, self.config.ranker, self.pipeline.home.work
        cutoffs = {"retrievers_t0": split.t0, "retrievers_t1": split.t1}
        files = {stage: self._saved(work / stage, cutoff) for stage, cutoff in cutoffs.items()}
        weights = {**self.config.recommender.rrf_weights, **self._best(RRF)}
        recommender = replace(self.config.recommender, rrf_weights=weights)

        def prepare() -> Callable[[Settings], float]:
            before, after = (load_retrievers(work / stage, self.past.catalogue) for stage in cutoffs)
            progress = self.pipeline.progress("tune: contexts retrieved for the ranker's table")
            table = RankerTrials(self.past, before, after, config, recommender, progress)
            return lambda s: table.ndcg(replace(config, **s))

        whole = asdict(config)
        space = {key: d for key, d in SPACES[RANKER].items() if key != "truncation" or config.objective == "lambdarank"}
        default = {key: whole[key] for key in space}
        return Part(RANKER, NDCG, space, default, [whole, asdict(recommender), files], prepare)

    def _key(self, part: Part) -> str:
        space = {name: distribution_to_json(d) for name, d in part.space.items()}
        data, split = self.pipeline.data.tables.info.fingerprint, asdict(self.past.split)
        return fingerprint_value([VERSION, data, split, part.name, space, part.default, part.depends_on])

    def _study(self, part: Part) -> optuna.Study:
        name = f"{part.name}-{self._key(part)[:16]}"
        return optuna.create_study(storage=self._storage, study_name=name, direction="maximize", load_if_exists=True)

    def _best(self, name: str) -> Settings:
        """The best settings of a part so far; nothing where there is no trial."""
        study = self._study(self.part(name))
        return dict(study.best_params) if complete(study) else {}


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count, in the order in which they were made; the first is the default."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _saved(folder: Path, cutoff: int) -> dict[str, str]:
    """SHA-256 of each saved retriever. Raises MissingArtefactError where they or the two-tower model among them are
    missing, or were fitted up to another moment."""
    if not (folder / "log.json").exists():
        raise MissingArtefactError(f"{folder} is not there. Run `recsys train` first.")
    if read_json(folder / "log.json")["cutoff"] != cutoff:
        raise MissingArtefactError(f"{folder} was fitted on other data. Run `recsys train` again.")
    if not (folder / TWO_TOWER).is_dir():
        raise MissingArtefactError(f"{folder} lacks the two-tower model. Run `recsys train --force`.")
    return {
        retriever.name: fingerprint_files(path for path in retriever.rglob("*") if path.is_file())
        for retriever in sorted(folder.iterdir())
        if retriever.is_dir()
    }
