"""`recsys experiment`: start, stop and read an experiment on the people of the service.

Arms are versions or settings; the registry's traffic says who is answered by what, and the prediction log who was.
The report compares each arm with the first one, the control, user by user.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from recsys.columns import USER_ID
from recsys.errors import ConfigError, DataError
from recsys.experiments.assignment import Arm, Experiment
from recsys.experiments.effects import Effect, UserTotals, effect, sample_ratio_p, users_needed
from recsys.experiments.sequential import SequentialTest
from recsys.monitoring.prediction_log import ANSWER
from recsys.registry import Registry

METRICS: Final = {"ctr": "labels", "liked rate": "liked"}  # of the items shown: watched or rated; four stars or more
EXPECTED: Final = 0.1  # effect that the sequential test is quickest for, as a share of the control's rate
SMALLEST: Final = 0.05  # effect that the power is stated for, as a share of the control's rate
BROKEN: Final = 0.001  # p of the sample ratio below which nothing should be believed
DAY_S: Final = 86_400


@dataclass(frozen=True)
class ArmFigures:
    """p99_ms: of whole answers; degraded: share of the answers."""

    name: str
    n_users: int
    n_answers: int
    degraded: float
    p99_ms: float


@dataclass(frozen=True)
class MetricFigures:
    """One arm against the control. always_valid_p: of the test that may be looked at every day; users_for_power: of
    both arms together, for 80 % power to find SMALLEST."""

    metric: str
    arm: str
    effect: Effect
    always_valid_p: float
    users_for_power: int


@dataclass(frozen=True)
class ExperimentReport:
    name: str
    days: int
    arms: tuple[ArmFigures, ...]
    sample_ratio_p: float
    metrics: tuple[MetricFigures, ...]

    def text(self) -> str:
        arms = pd.DataFrame([vars(arm) for arm in self.arms]).to_string(index=False, float_format="{:.4f}".format)
        lines = [f"experiment {self.name}, {self.days} days", "", arms, ""]
        if self.sample_ratio_p < BROKEN:
            lines.append(
                f"SAMPLE RATIO MISMATCH (p = {self.sample_ratio_p:.2g}): users did not fall into the arms as planned."
                " Find out why before believing anything below.\n"
            )
        for m in self.metrics:
            e = m.effect
            lines.append(
                f"{m.metric}, {m.arm}: {e.treatment:.4f} against {e.control:.4f}, difference {e.difference:+.4f}"
                f" [{e.low:+.4f}, {e.high:+.4f}], p = {e.p_value:.3f} if this look was planned, always valid"
                f" p = {m.always_valid_p:.3f}; CUPED took {e.variance_reduction:.0%} of the variance;"
                f" {m.users_for_power:,} users find {SMALLEST:.0%}"
            )
        return "\n".join(lines) + "\n"


def parse_arm(text: str) -> Arm:
    """`name=share[,version=N][,setting=value ...]`. Raises ConfigError for anything else."""
    name, *settings = text.split(",")
    values = dict(part.partition("=")[::2] for part in (name, *settings))
    if not all(re.fullmatch(r"[\w.\-]+=\d+(\.\d+)?", part) for part in (name, *settings)):
        raise ConfigError(f"--arm {text!r}: write name=share, such as varied=0.5,diversity=0.3 or new=0.1,version=7")
    label, share = name.split("=")
    version = values.pop("version", None)
    values.pop(label)
    return Arm(label, float(share), None if version is None else int(version), {k: float(v) for k, v in values.items()})


def start(registry: Registry, name: str, arms: tuple[Arm, ...]) -> Experiment:
    """Raises ConfigError while another experiment runs, RegistryError for a version that is not there."""
    traffic, experiment = registry.traffic(), Experiment(name, arms)
    if traffic.experiment is not None:
        raise ConfigError(f"experiment {traffic.experiment.name} is running; `recsys experiment stop` ends it")
    registry.set_traffic(replace(traffic, experiment=experiment))
    return experiment


def stop(registry: Registry) -> str:
    """Everybody gets the champion again. The name of what was stopped; raises ConfigError where nothing runs."""
    traffic = registry.traffic()
    if traffic.experiment is None:
        raise ConfigError("no experiment is running")
    registry.set_traffic(replace(traffic, experiment=None))
    return traffic.experiment.name


def report(experiment: Experiment, rows: pd.DataFrame) -> ExperimentReport:
    """`rows`: of `recsys.monitoring.outcomes`, also those from before the experiment, which tell how its users differed
    already. Raises DataError where an arm has too few users."""
    mine = rows[rows["experiment"] == experiment.name]
    if mine.empty:
        raise DataError(f"nobody has been answered in experiment {experiment.name} yet")
    began = mine["received"].min()
    # Exposure is the first answer. Whom the champion answered for a version that is not loaded stays in the arm: what
    # was assigned is compared, or the arms would differ in more than chance.
    arm_of = mine.groupby(USER_ID)["arm"].first().str.removesuffix(":champion")
    mine = mine.assign(arm=mine[USER_ID].map(arm_of), day=(mine["received"] - began) // pd.Timedelta(seconds=DAY_S))
    before = rows[(rows["received"] < began) & rows[USER_ID].isin(arm_of.index)]
    counts = arm_of.value_counts()
    by_name = {arm.name: arm.share for arm in experiment.arms}
    metrics = [
        _against_control(mine, before, label, column, experiment.arms[0].name, arm.name)
        for label, column in METRICS.items()
        for arm in experiment.arms[1:]
    ]
    p = sample_ratio_p([int(counts.get(name, 0)) for name in by_name], list(by_name.values()))
    arms = tuple(_figures(name, mine[mine["arm"] == name]) for name in by_name)
    return ExperimentReport(experiment.name, int(mine["day"].max()) + 1, arms, p, tuple(metrics))


def _figures(name: str, rows: pd.DataFrame) -> ArmFigures:
    answers = rows.drop_duplicates(ANSWER)
    return ArmFigures(
        name,
        rows[USER_ID].nunique(),
        len(answers),
        float((answers["degraded"] != "").mean()) if len(answers) else 0.0,
        float(answers["total_ms"].quantile(0.99)),
    )


def _against_control(
    rows: pd.DataFrame, before: pd.DataFrame, label: str, column: str, control: str, arm: str
) -> MetricFigures:
    rates = before.groupby(USER_ID)[column].mean()
    test: SequentialTest | None = None
    p, latest = 1.0, None
    for day in range(int(rows["day"].max()) + 1):  # every look counts, taken or not
        known = rows[rows["day"] <= day]
        arms = [_totals(known[known["arm"] == name], column, rates) for name in (control, arm)]
        try:
            latest = effect(*arms)
        except DataError:
            if day == rows["day"].max():
                raise
            continue
        test = test or SequentialTest(EXPECTED * max(latest.control, 1e-3))
        p = test.p_value(latest.difference, latest.standard_error, p)
    assert latest is not None
    n = latest.n_control + latest.n_treatment
    return MetricFigures(
        label, arm, latest, p, users_needed(latest.standard_error, n, SMALLEST * max(latest.control, 1e-3))
    )


def _totals(rows: pd.DataFrame, column: str, rates: "pd.Series[Any]") -> UserTotals:
    """`rates`: of each user before the experiment; who was not there counts as the mean."""
    sums = rows.groupby(USER_ID)[column].agg(["sum", "size"])
    earlier = rates.reindex(sums.index).fillna(rates.mean() if len(rates) else 0.0)
    return UserTotals(*(np.asarray(x, dtype=np.float64) for x in (sums["sum"], sums["size"], earlier)))
