"""The results of a search: every trial in `reports/tuning.md`, and the best settings alone in `tuned.json`, which later
trainings use once it is copied to `pipelines/tuned/<data set>.json` (`pipelines.config`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial

from pipelines.config import ABOUT, OF_RETRIEVERS, RANKER, RRF, TOWER
from recsys.atomic_io import replacing_file, write_json
from recsys.data.split import Split
from recsys.evaluation.leaderboard import data_of, utc
from recsys.evaluation.study import StudyRun
from recsys.evaluation.tables import Table, with_facts

Trials = Sequence[FrozenTrial]  # the complete ones of a part; the first is the default


def best_of(trials: Trials) -> FrozenTrial:
    """The first among equals."""
    return max(trials, key=lambda trial: trial.values[0])


def write(
    folder: Path, run: StudyRun, split: Split, objectives: Mapping[str, str], parts: Mapping[str, Trials]
) -> None:
    """`objectives` says what each part maximises."""
    best = {name: best_of(trials).params for name, trials in parts.items()}
    validation = {
        name: {
            "objective": objectives[name],
            "default": trials[0].values[0],
            "best": best_of(trials).values[0],
            "trials": len(trials),
            "run": dict(run.about),
        }
        for name, trials in parts.items()
    }
    sections = {name: best.pop(name) for name in (RRF, RANKER, TOWER) if name in best}
    about = {"data": data_of(run.data), "validation": validation}
    write_json(folder / "tuned.json", {**sections, OF_RETRIEVERS: best, ABOUT: about})
    text = (
        f"# Hyper-parameter search\n\nData: {run.data.label}. Validation window: events after {utc(split.t1)} through "
        f"{utc(split.t2)}; no later event is read. Trial 0 is the default. The best of many trials on one window is "
        "too good: only the test window shows how much of a gain is left, and no setting is chosen there.\n\n"
        f"{summary(objectives, parts).markdown()}"
    )
    for name, trials in parts.items():
        keys = [*trials[0].params]
        rows = [
            [str(n), f"{t.values[0]:.4f}", f"{_seconds(t):.2f}", *(f"{t.params[key]:.4g}" for key in keys)]
            for n, t in enumerate(trials)
        ]
        table = Table(["Trial", "Value", "Seconds", *keys], rows, marked=str(trials.index(best_of(trials))))
        text += f"\n## {name}\n\n{table.markdown()}"
    text += "\nTo use the best settings in later trainings, copy tuned.json to pipelines/tuned/ (docs/tuning.md).\n"
    with replacing_file(folder / "tuning.md") as beside:
        beside.write_text(with_facts(text, run.about), encoding="utf-8")


def summary(objectives: Mapping[str, str], parts: Mapping[str, Trials]) -> Table:
    """A row for each part: how much was tried, and what it gained over the default."""
    rows = []
    for name, trials in parts.items():
        default, best = trials[0].values[0], best_of(trials).values[0]
        seconds = sum(map(_seconds, trials))
        values = (f"{seconds:.1f}", f"{default:.4f}", f"{best:.4f}", f"{best - default:+.4f}")
        rows.append([name, objectives[name], str(len(trials)), *values])
    return Table(["Part", "Objective", "Trials", "Seconds", "Default", "Best", "Gain"], rows)


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0
