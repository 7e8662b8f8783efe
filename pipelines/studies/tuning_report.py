"""The results of a search: every trial in `reports/tuning.json` and `.md`, and the best settings alone in `tuned.json`.

`save` puts those into `pipelines/tuned/<data set>.json`, which later trainings use (`pipelines.config`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import ABOUT, OF_RETRIEVERS, RANKER, RRF, TOWER, Tuned, read_tuned, tuned_path, with_tuned
from pipelines.pipeline import Pipeline
from recsys.atomic_io import write_json
from recsys.data.datasets import DATASETS
from recsys.errors import ConfigError
from recsys.evaluation.leaderboard import data_of, utc
from recsys.evaluation.study import Study, write_study
from recsys.evaluation.tables import Table


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
class TuningStudy(Study):
    """The validation window is (after, through], seconds UTC."""

    after: int
    through: int
    parts: Mapping[str, TunedPart]


def write(folder: Path, result: TuningStudy) -> None:
    write_study(folder, "tuning", result, markdown(result))
    write_json(folder / "tuned.json", tuned(result, [*result.parts], {}))


def tuned(result: TuningStudy, names: Sequence[str], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What `pipelines.config.with_tuned` reads: the best settings of the named parts, and how they were found. Other
    parts of an `earlier` file stay."""
    best = {name: result.parts[name].best.settings for name in names}
    sections = {name: earlier[name] for name in (RRF, RANKER, TOWER) if name in earlier}
    sections |= {name: best.pop(name) for name in (RRF, RANKER, TOWER) if name in best}
    validation = dict(earlier.get(ABOUT, {}).get("validation", {}))
    for name in names:
        part = result.parts[name]
        validation[name] = {
            "objective": part.objective,
            "default": part.default.value,
            "best": part.best.value,
            "trials": len(part.trials),
            "run": dict(result.run.about),
        }
    about = {"data": data_of(result.run.data), "validation": validation}
    return {**sections, OF_RETRIEVERS: {**earlier.get(OF_RETRIEVERS, {}), **best}, ABOUT: about}


def require_savable(pipeline: Pipeline) -> None:
    """Raises ConfigError unless the data are an official data set and its file, if there is one, can be used."""
    info = pipeline.data.source
    if info.synthetic or info.name not in DATASETS:
        raise ConfigError(
            f"tune --save keeps settings for official data sets, and {info.label} is none. Its search is in "
            f"{pipeline.home.reports}; the rules of pipelines/config.py set its defaults."
        )
    _earlier(pipeline)


def _earlier(pipeline: Pipeline) -> Mapping[str, Any]:
    """What the checked-in file holds; nothing where it is not there or of other data of that name."""
    info = pipeline.data.source
    path = tuned_path(info.name)
    if not path.exists() or (tuned_before := read_tuned(path)).fingerprint != info.fingerprint:
        return {}
    with_tuned(pipeline.config, tuned_before)  # refuses what a training would refuse
    return tuned_before.content


def save(pipeline: Pipeline, result: TuningStudy, names: Sequence[str]) -> None:
    """Put the named parts into the checked-in file. Its other parts stay if they are of the same data."""
    info, report = pipeline.data.source, pipeline.report
    path = tuned_path(info.name)
    content = tuned(result, names, _earlier(pipeline))
    with_tuned(pipeline.config, Tuned(path, info.fingerprint, content))
    write_json(path, content)
    kept = sorted(set(content[ABOUT]["validation"]) - set(names))
    report(f"tune: {path} holds {', '.join(names)} of this search, and of earlier ones {', '.join(kept) or 'nothing'}")
    report(f"tune: `recsys train` uses it from now on. Check it in: git add {path}")


def markdown(result: TuningStudy) -> str:
    """A row for each part, then its settings, then every trial."""
    text = (
        f"# Hyper-parameter search\n\nData: {result.run.data.label}. Validation window: events after "
        f"{utc(result.after)} through {utc(result.through)}; no later event is read. Trial 0 is the default. The best "
        "of many trials on one window is too good: only the test window shows how much of a gain is left, and no "
        f"setting is chosen there.\n\n{summary(result).markdown()}"
    )
    for name, part in result.parts.items():
        keys = [*part.default.settings]
        settings = [[key, f"{part.default.settings[key]:.4g}", f"{part.best.settings[key]:.4g}"] for key in keys]
        trials = [
            [str(n), f"{t.value:.4f}", f"{t.seconds:.2f}", *(f"{t.settings[key]:.4g}" for key in keys)]
            for n, t in enumerate(part.trials)
        ]
        text += f"\n## {name}\n\n{Table(['Setting', 'Default', 'Best'], settings).markdown()}"
        text += f"\n{Table(['Trial', 'Value', 'Seconds', *keys], trials).markdown()}"
    return f"{text}\nTo keep the settings for later trainings: `recsys tune --save`, then check in the file it names.\n"


def summary(result: TuningStudy) -> Table:
    """A row for each part: how much was tried, and what it gained over the default."""
    rows = []
    for name, part in result.parts.items():
        default, best = part.default.value, part.best.value
        seconds = sum(trial.seconds for trial in part.trials)
        values = (f"{seconds:.1f}", f"{default:.4f}", f"{best:.4f}", f"{best - default:+.4f}")
        rows.append([name, part.objective, str(len(part.trials)), *values])
    return Table(["Part", "Objective", "Trials", "Seconds", "Default", "Best", "Gain"], rows)
