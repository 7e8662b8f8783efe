"""What alarms and what does not, in planted weeks; figures of outcomes against sums by hand; the command."""

import numpy as np
import pandas as pd
import pytest

from pipelines.monitoring.monitor import (
    EVENT_RATE,
    FEWEST_USERS,
    EventRate,
    Inputs,
    Thresholds,
    compare_inputs,
    event_rate,
    outcome_rows,
    position_rows,
)
from recsys import command
from recsys.atomic_io import read_json
from recsys.columns import ITEM_ID, USER_ID, YEAR
from recsys.evaluation.bootstrap import Estimate
from recsys.monitoring.prediction_log import predictions_folder, read_answers
from tests.planted import planted_tables

from .conftest import DAY, RIGHT, Monitored, moments

N_FEATURES, K, NOW = 30, 5, 1_000 * DAY
TABLES = planted_tables()
ITEMS = TABLES.items.sort_values(YEAR)[ITEM_ID].to_numpy()


def week(rng: np.random.Generator, n_users: int, more_visits: float) -> pd.DataFrame:
    """Visits of people who differ: a third of the features are a user's alone, some are missing, a fifth are new."""
    n_visits = 1 + rng.poisson(more_visits, n_users)
    user = np.repeat(np.arange(n_users), n_visits * K)
    person = rng.normal(size=(n_users, N_FEATURES))
    values = person[user] + rng.normal(size=(len(user), N_FEATURES))
    values[:, ::3] = np.exp(person[user, ::3])
    values[rng.random(values.shape) < 0.05] = np.nan
    frame = pd.DataFrame(values.astype(np.float32), columns=[f"feature_{n}" for n in range(N_FEATURES)])
    visit = np.repeat(np.arange(n_visits.sum()), K)
    return frame.assign(
        request_id=visit.astype(str),
        received=pd.Timestamp(NOW, unit="s", tz="UTC"),
        bundle_id=RIGHT,
        degraded="",
        role="shown",
        now=NOW,
        user_events=np.where(rng.random(n_users) < 0.2, 0.0, 2.0)[user],
        user_session_length=0.0,
        score=(person[user, 1] + rng.normal(size=len(user))),
        watch_probability=0.1,
        like_probability=0.5,
        position=np.tile(np.arange(K) + 1, n_visits.sum()),
        **{USER_ID: user, ITEM_ID: rng.choice(ITEMS[: len(ITEMS) // 2], len(user))},
    )


def compared(reference: pd.DataFrame, current: pd.DataFrame, events: EventRate | None = None) -> Inputs:
    return compare_inputs(current, lambda _: reference, TABLES, Thresholds(), events)


def alarming(inputs: Inputs) -> list[str]:
    rate = [EVENT_RATE] if inputs.event_rate and inputs.event_rate.alarm else []
    return [row.name for row in inputs.compared if row.alarm] + rate


def counted(rng: np.random.Generator, per_day: list[float]) -> EventRate | None:
    """Daily counts that vary more than Poisson's; the last of `per_day` is the newest day."""
    counts = rng.poisson(np.array(per_day) * rng.gamma(20, 1 / 20, len(per_day)))
    days_ago = np.repeat(np.arange(len(per_day))[::-1], counts)
    return event_rate(NOW - 1 - days_ago * DAY - rng.integers(DAY, size=len(days_ago)), NOW, days=7)


@pytest.mark.parametrize(("n_users", "n_reports"), [(FEWEST_USERS, 60), (200, 20)])
def test_at_most_one_in_twenty_reports_of_quiet_weeks_alarms(n_users: int, n_reports: int) -> None:
    rng = np.random.default_rng(n_users)
    reports = [
        compared(week(rng, 200, 0.0), week(rng, n_users, 2.0), counted(rng, [100.0] * 35)) for _ in range(n_reports)
    ]
    assert all(len(report.compared) == N_FEATURES + 7 for report in reports)
    assert np.mean([bool(alarming(report)) for report in reports]) <= 0.05


def test_the_p_value_of_one_input_is_as_rare_as_it_says() -> None:
    rng = np.random.default_rng(5)
    reports = [compared(week(rng, 200, 0.0), week(rng, 100, 2.0)) for _ in range(30)]
    p_values = np.array([row.drift.p_value for report in reports for row in report.compared])
    assert np.mean(p_values < 0.05) == pytest.approx(0.05, abs=0.02)


def planted(name: str, rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    changes: dict[str, pd.Series] = {
        "feature_4": rows["feature_4"] + 1.5,
        "feature_7": rows["feature_7"].where(rng.random(len(rows)) > 0.4),  # missing
        "new_user": rows["user_events"].where(rows[USER_ID] % 2 == 0, 0),
        "catalogue_age_years": rows["now"] + 40 * 365 * DAY,
    }
    column = {"new_user": "user_events", "catalogue_age_years": "now"}.get(name, name)
    return rows.assign(**{column: changes[name]})


@pytest.mark.parametrize("name", ["feature_4", "feature_7", "new_user", "catalogue_age_years"])
def test_planted_drift_is_found_and_nothing_else(name: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        inputs = compared(week(rng, 200, 0.0), planted(name, week(rng, 150, 2.0), rng))
        assert set(alarming(inputs)) - {"user_events"} == {name}


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_changed_event_rate_is_found_within_five_days(factor: float) -> None:
    rng = np.random.default_rng(4)
    quiet = compared(week(rng, 10, 0.0), week(rng, 10, 0.0), counted(rng, [100.0] * 35))
    changed = compared(week(rng, 10, 0.0), week(rng, 10, 0.0), counted(rng, [100.0] * 30 + [100.0 * factor] * 5))
    assert (alarming(quiet), alarming(changed)) == ([], [EVENT_RATE])
    assert "10 users visited" in changed.not_compared
    assert counted(rng, [100.0] * 13) is None


def test_outcomes_are_the_sums_by_hand() -> None:
    """Forty users with two items each; every second one watches the second item and likes it."""
    rows = pd.DataFrame(
        [
            {
                "request_id": str(user),
                USER_ID: user,
                "received": pd.Timestamp(0, tz="UTC"),
                "role": "shown",
                "version": 3,
                "position": position,
                "labels": int(watched),
                "rated": watched,
                "liked": watched,
                "watch_probability": 0.35,
                "like_probability": 0.8,
                "user_events": np.log1p(5 if user < 30 else 6),
                "popularity_all": np.float32(np.log1p(9 if position == 2 else 10)),
            }
            for user in range(40)
            for position in (1, 2)
            for watched in [user % 2 == 0 and position == 2]
        ]
    )
    everyone, new_users, new_items = outcome_rows(rows, {3: Estimate(0.2)})
    assert [o.cohort for o in (everyone, new_users, new_items)] == ["all", "new user", "new item"]
    assert (everyone.shown, new_users.shown, new_items.shown) == (80, 60, 40)
    assert everyone.ctr is not None
    assert everyone.ndcg is not None
    assert everyone.ctr.mean == pytest.approx(0.25)
    assert everyone.ndcg.mean == pytest.approx(0.5 / np.log2(3))
    error = np.sqrt(0.25 * 40 / 39 / 40) / 2  # of the mean over users of 0 or 1, halved: two items each
    assert everyone.ctr.low == pytest.approx(0.25 - 1.96 * error, abs=1e-4)
    assert everyone.watch_ece == pytest.approx(0.1, abs=0.1)
    assert everyone.like_ece == pytest.approx(0.2)
    assert everyone.promised_ndcg == Estimate(0.2)
    assert new_items.ctr is not None
    assert new_items.ctr.mean == pytest.approx(0.5)
    assert [(p.position, p.shown, p.ctr, p.liked) for p in position_rows(rows)] == [(1, 40, 0, 0), (2, 40, 0.5, 0.5)]


def test_the_command(world: Monitored, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["monitor", "--home", str(world.home.root.parent), "--until"]
    at = moments()[0][1]
    end = pd.Timestamp(at + 2 * DAY, unit="s").isoformat()[:19]
    assert command.run([*arguments, end]) == 2
    assert "holds no answers of that time" in capsys.readouterr().err
    made = world.serve(moments())
    for (user_id, moment), answer in zip(moments()[:9], made, strict=False):
        world.event(user_id, int(answer.item_ids[0, 1]), moment + 60, 4.5)
    assert command.run([*arguments, end]) == 0
    assert f"{RIGHT} carries no reference: train again" in capsys.readouterr().out
    reference = read_answers(predictions_folder(world.home), since=0.0)
    reference.to_parquet(world.home.bundles / RIGHT / "reference.parquet")
    world.serve(moments(DAY)[:9], degraded=("user_state",))
    assert command.run([*arguments, end]) == 1
    report = read_json(world.home.reports / "monitor.json")
    assert len(report["alarms"]) == 1
    assert "of the answers are degraded, at most 5.0% may be" in report["alarms"][0]
    assert report["inputs"]["not_compared"] == ""
    assert report["outcomes"][0]["ctr"]["mean"] == pytest.approx(9 / sum(o.item_ids.size for o in made))
    gauges = (world.home.reports / "monitor.prom").read_text()
    assert "\nrecsys_monitor_alarms 1.0\n" in gauges
    assert 'recsys_monitor_ctr{version="1",cohort="all"} 0.0' in gauges
    assert "Alarms" in (world.home.reports / "monitor.html").read_text()
    assert "ALARM" in capsys.readouterr().out
