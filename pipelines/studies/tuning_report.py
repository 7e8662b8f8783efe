"""The results of a hyper-parameter search, for people and for `pipelines.config`.

`reports/tuning.json` with every trial, `tuning.md`, and `tuned.json`, the settings alone. `save` puts parts of it into
`pipelines/tuned/<data set>.json`, which later trainings use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config import ABOUT, OF_RETRIEVERS, RANKER, RRF, TOWER, Tuned, read_tuned, tuned_path, with_tuned
from pipelines.pipeline import Pipeline
from pipelines.studies.reports import StudyRun, write_study
from recsys.atomic_io import write_json
from recsys.data.datasets import DATASETS
from recsys.errors import ConfigError
from recsys.evaluation.leaderboard import data_of, utc
from recsys.evaluation.tables import Table, with_facts


@dataclass(frozen=True)
class Trial:
    value: float
    seconds: float
    settings: dict[str, Any]  # of a retriever, the merge, the ranker or the two-tower model


@dataclass(frozen=True)
class TunedPart:
    """The complete trials of one part; the first is the default, `key` the identity of its study."""

    objective: str
    key: str
    trials: tuple[Trial, ...]

    @property
    def default(self) -> Trial:
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The first among equals."""
        return max(self.trials, key=lambda trial: trial.value)


@dataclass(frozen=True)
class TuningStudy:
    """The validation window is (after, through], seconds UTC."""

    run: StudyRun
    after: int
    through: int
    parts: Mapping[str, TunedPart]


def write(pipeline: Pipeline, found: TuningStudy) -> None:
    write_study(pipeline.home.reports, "tuning", found, markdown(found))
    write_json(pipeline.home.reports / "tuned.json", tuned(found, [*found.parts]))


def tuned(found: TuningStudy, names: Sequence[str], earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `pipelines.config.with_tuned` reads: the best settings of the named parts, and how they were found. Other
    parts of an `earlier` file stay."""
    kept = earlier or {}
    settings = {**kept.get(OF_RETRIEVERS, {}), **{name: kept[name] for name in (RRF, RANKER, TOWER) if name in kept}}
    validation = dict(kept.get(ABOUT, {}).get("validation", {}))
    for name in names:
        part = found.parts[name]
        settings[name] = part.best.settings
        validation[name] = {
            "objective": part.objective,
            "default": part.default.value,
            "best": part.best.value,
            "trials": len(part.trials),
            "run": dict(found.run.about),
        }
    alone = {name: settings.pop(name) for name in (RRF, RANKER, TOWER) if name in settings}
    return {**alone, OF_RETRIEVERS: settings, ABOUT: {"data": data_of(found.run.data), "validation": validation}}


def require_savable(pipeline: Pipeline) -> None:
    """Raises ConfigError unless the data are an official data set and its file, if there is one, can be used."""
    info, path = pipeline.data.tables.info, tuned_path(pipeline.data.tables.info.name)
    if info.synthetic or info.name not in DATASETS:
        raise ConfigError(
            f"tune --save keeps settings for official data sets, and {info.label} is none. Its search is in "
            f"{pipeline.home.reports}; the rules of pipelines/config.py set its defaults."
        )
    if path.exists() and (found := read_tuned(path)).fingerprint == info.fingerprint:
        with_tuned(pipeline.config, found)


def save(pipeline: Pipeline, found: TuningStudy, names: Sequence[str]) -> None:
    """Put the named parts into the checked-in file. Its other parts stay if they are of the same data."""
    path, fingerprint = tuned_path(pipeline.data.tables.info.name), pipeline.data.tables.info.fingerprint
    earlier = read_tuned(path) if path.exists() else None
    if earlier and earlier.fingerprint != fingerprint:
        pipeline.report(f"tune: {path} was searched on other data of that name; it begins anew, without its parts")
        earlier = None
    content = tuned(found, names, earlier.content if earlier else None)
    if kept := sorted(set(content[ABOUT]["validation"]) - set(names)):
        pipeline.report(f"tune: kept from earlier searches: {', '.join(kept)}")
    if unnamed := [name for name in found.parts if name not in names]:
        pipeline.report(f"tune: not saved, because this command did not name them: {', '.join(unnamed)}")
    with_tuned(pipeline.config, Tuned(path, fingerprint, content))  # refuses what a later training would refuse
    write_json(path, content)
    pipeline.report(f"tune: saved as {path}; `recsys train` uses it from now on. Check it in: git add {path}")


def markdown(found: TuningStudy) -> str:
    """A row for each part, then its settings, then every trial."""
    text = (
        f"# Hyper-parameter search\n\nData: {found.run.data.label}. Validation window: events after "
        f"{utc(found.after)} through {utc(found.through)}; no later event is read. Trial 0 is the default. The best of "
        "many trials on one window is too good: only the test window shows how much of a gain is left, and no setting "
        f"is chosen there.\n\n{summary(found).markdown()}"
    )
    for name, part in found.parts.items():
        keys = [*part.default.settings]
        settings = [[key, f"{part.default.settings[key]:.4g}", f"{part.best.settings[key]:.4g}"] for key in keys]
        trials = [
            [str(n), f"{t.value:.4f}", f"{t.seconds:.2f}", *(f"{t.settings[key]:.4g}" for key in keys)]
            for n, t in enumerate(part.trials)
        ]
        text += f"\n## {name}\n\n{Table(['Setting', 'Default', 'Best'], settings).markdown()}"
        text += f"\n{Table(['Trial', 'Value', 'Seconds', *keys], trials).markdown()}"
    text += "\nTo keep the settings for later trainings: `recsys tune --save`, then check in the file that it names.\n"
    return with_facts(text, found.run.facts)


def summary(found: TuningStudy) -> Table:
    """A row for each part: how much was tried, and what it gained over the default."""
    rows = []
    for name, part in found.parts.items():
        default, best = part.default.value, part.best.value
        seconds = sum(trial.seconds for trial in part.trials)
        values = (f"{seconds:.1f}", f"{default:.4f}", f"{best:.4f}", f"{best - default:+.4f}")
        rows.append([name, part.objective, str(len(part.trials)), *values])
    return Table(["Part", "Objective", "Trials", "Seconds", "Default", "Best", "Gain"], rows)
