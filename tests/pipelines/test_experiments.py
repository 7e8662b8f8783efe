"""Experiments from the command line to the report, on logged answers with a planted effect."""

import numpy as np
import pandas as pd
import pytest

from pipelines.experiments import parse_arm, report
from recsys.columns import USER_ID
from recsys.errors import ConfigError, DataError
from recsys.experiments.assignment import Arm, Experiment
from tests.conftest import TrainedHome

TRIAL = Experiment("trial", (Arm("control", 0.5), Arm("varied", 0.5, settings={"diversity": 0.3})))
USERS, DAYS, SHOWN = 400, 10, 10


def logged(lift: float, lost: float = 0.0) -> pd.DataFrame:
    """Ten days before the experiment and ten in it, a list a day and user; `lost`: share of the varied whose answers
    are not in the log."""
    rng = np.random.default_rng(3)
    likes = rng.beta(3, 9, USERS)
    parts = []
    for day in range(-DAYS, DAYS):
        users = np.flatnonzero(rng.random(USERS) < 0.6)
        arms = np.array([TRIAL.arm_of(int(user)).name for user in users])
        chance = np.clip(likes[users] * np.where((day >= 0) & (arms == "varied"), 1 + lift, 1), 0, 1)
        rows = pd.DataFrame(
            {USER_ID: np.repeat(users, SHOWN), "liked": rng.random(len(users) * SHOWN) < np.repeat(chance, SHOWN)}
        )
        moment = pd.Timestamp("2026-01-11", tz="UTC") + pd.Timedelta(days=day)
        rows = rows.assign(received=moment, request_id=[f"{day}-{user}" for user in rows[USER_ID]], role="shown")
        rows["experiment"], rows["arm"] = ("trial", np.repeat(arms, SHOWN)) if day >= 0 else (None, None)
        parts.append(rows)
    rows = pd.concat(parts, ignore_index=True).assign(degraded="", total_ms=5.0)
    gone = (rows["arm"] == "varied") & (rows[USER_ID] % 100 < 100 * lost)
    return rows.assign(labels=rows["liked"].astype(int))[~gone]


def test_a_planted_effect_is_measured_with_its_interval_and_found_at_any_look():
    made = report(TRIAL, logged(lift=0.3))
    (liked,) = [m for m in made.metrics if m.metric == "liked rate"]
    assert liked.effect.low < 0.3 * 0.25 < liked.effect.high
    assert liked.always_valid_p < 0.05
    assert liked.effect.variance_reduction > 0.2
    assert made.sample_ratio_p > 0.001
    assert sum(arm.n_users for arm in made.arms) == USERS
    assert "difference +0.0" in made.text()


def test_no_effect_is_not_found_and_lost_users_are_called_a_mismatch():
    made = report(TRIAL, logged(lift=0.0, lost=0.4))
    assert all(m.always_valid_p > 0.05 for m in made.metrics)
    assert made.sample_ratio_p < 0.001
    assert "SAMPLE RATIO MISMATCH" in made.text()


def test_an_experiment_that_nobody_met_has_no_report():
    with pytest.raises(DataError, match="nobody has been answered"):
        report(Experiment("other", TRIAL.arms), logged(0.0))


@pytest.mark.parametrize("text", ["varied", "varied=", "varied=a", "varied=0.5,diversity", "=0.5", "varied=0.5,=1"])
def test_arms_that_cannot_be_read_are_refused(text: str):
    with pytest.raises(ConfigError, match="write name=share"):
        parse_arm(text)


def test_arms_say_share_version_and_settings():
    assert parse_arm("new=0.1,version=7,exploration=0.05") == Arm("new", 0.1, 7, {"exploration": 0.05})


def test_an_experiment_is_started_shown_and_stopped(trained_home: TrainedHome, capsys: pytest.CaptureFixture[str]):
    arms = ("--arm", "control=0.5", "--arm", "varied=0.5,diversity=0.3")
    assert trained_home.run("experiment", "start", "trial", *arms) == 0
    try:
        assert trained_home.run("experiment", "status") == 0
        assert "varied: 50%, champion {'diversity': 0.3}" in capsys.readouterr().out
        assert trained_home.run("experiment", "start", "second", *arms) == 2
        assert "experiment trial is running" in capsys.readouterr().err
        assert trained_home.run("experiment", "report") == 2
    finally:
        assert trained_home.run("experiment", "stop") == 0
    assert trained_home.run("experiment", "stop") == 2
    assert trained_home.run("experiment", "start", "third", "--arm", "a=0.5", "--arm", "b=0.5,version=99") == 2
