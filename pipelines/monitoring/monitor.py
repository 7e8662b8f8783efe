"""`recsys monitor`: what models are fed, what they answer, and what comes of it; and which of it is an alarm.

An input alarms where two things hold: users of the reference's population would not differ so much (Holm over all
inputs, so that the chance of any false alarm in a report is `false_alarms`), and the change is large (PSI). Both sides
are starts of visits, because what a model sees in the middle of one depends on how people use the page.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from recsys.arrays import DoubleArray
from recsys.columns import ITEM_ID, USER_ID, YEAR
from recsys.data.tables import Tables
from recsys.errors import DataError
from recsys.evaluation.bootstrap import Estimate
from recsys.evaluation.calibration import reliability
from recsys.events import EventTable
from recsys.experiments.effects import rate
from recsys.monitoring.drift import Drift, Sample, drift, holm
from recsys.monitoring.outcomes import HORIZON_S, outcomes, user_totals
from recsys.monitoring.prediction_log import ANSWER, NONE, SCORES, SHOWN, feature_columns

DAY_S: Final = 86_400
FEWEST_USERS: Final = 50  # on each side; with fewer the inputs are not compared
BEFORE_DAYS, FEWEST_DAYS = 28, 7  # the days before the window that the event rate is compared with: most, and fewest
EVENT_RATE: Final = "event_rate"
POPULAR: Final = 0.1  # the tenth of the items with most ratings
NEW_USER_EVENTS, NEW_ITEM_RATINGS = 5, 9  # at most, when the answer was made
YEAR_S: Final = 31_556_952


@dataclass(frozen=True)
class Thresholds:
    """false_alarms: share of the reports of quiet weeks in which an input alarms, at most; smallest_psi: what counts
    as a shift; event_factor: by which the events of a day grow or shrink; degraded: share of the answers, at most."""

    false_alarms: float = 0.05
    smallest_psi: float = 0.2
    event_factor: float = 1.5
    degraded: float = 0.05


@dataclass(frozen=True)
class Input:
    name: str
    drift: Drift
    alarm: bool = False


@dataclass(frozen=True)
class EventRate:
    """Events a day, in the window and before it; geometric means."""

    per_day: float
    before: float
    p_value: float
    alarm: bool = False

    @property
    def factor(self) -> float:
        return self.per_day / self.before


@dataclass(frozen=True)
class Inputs:
    """Of the bundle that answered most. not_compared: why there is no comparison; empty where there is one."""

    bundle_id: str = ""
    visits: int = 0
    users: int = 0
    reference_users: int = 0
    compared: tuple[Input, ...] = ()
    event_rate: EventRate | None = None
    not_compared: str = ""


@dataclass(frozen=True)
class Distribution:
    name: str
    mean: float
    p05: float
    p50: float
    p95: float


@dataclass(frozen=True)
class Outputs:
    """coverage: share of the catalogue that was shown to anybody. popularity: share of what was shown that is among the
    POPULAR items. degraded: share of the answers."""

    answers: int
    users: int
    degraded: float
    coverage: float
    popularity: float
    distributions: tuple[Distribution, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of the answers of one version to one cohort, with intervals by user; None where too few users say.

    ctr, liked   shares of the shown items that were watched or rated, and that were rated LIKED_RATING or more
    ndcg         mean over the answers of the DCG of what was watched or rated, over that of the best order of it; 0
                 where nothing was. Not the offline metric, which knows one event: compare versions and weeks by it
    watch_ece, like_ece   of P(watch) over what was shown, and of P(like) over what was rated
    promised_ndcg         NDCG@10 of the version's evaluation
    """

    version: int
    cohort: str
    shown: int
    users: int
    ctr: Estimate | None
    liked: Estimate | None
    ndcg: Estimate | None
    watch_ece: float | None
    like_ece: float | None
    promised_ndcg: Estimate | None


@dataclass(frozen=True)
class PositionOutcome:
    version: int
    position: int
    shown: int
    ctr: float
    liked: float


@dataclass(frozen=True)
class MonitorReport:
    """The window is since_s <= received < until_s, seconds UTC; outcomes are those of a window one horizon earlier."""

    data: str
    since_s: int
    until_s: int
    thresholds: Thresholds
    inputs: Inputs
    outputs: Outputs
    outcomes: tuple[Outcome, ...]
    positions: tuple[PositionOutcome, ...]
    alarms: tuple[str, ...]
    about: Mapping[str, str] = field(default_factory=dict)


def measure(
    answers: pd.DataFrame,
    table: EventTable,
    tables: Tables,
    reference_of: Callable[[str], pd.DataFrame | None],
    promised: Mapping[int, Estimate],
    *,
    until_s: int,
    days: int,
    thresholds: Thresholds = Thresholds(),
) -> MonitorReport:
    """`answers` as of `read_answers`, a horizon longer than the window. Raises DataError where it has none."""
    since_s = until_s - days * DAY_S
    answers = answers[answers["role"] == SHOWN]
    received = answers["received"].astype("int64") / 1e6
    window = answers[(received >= since_s) & (received < until_s)]
    if window.empty:
        raise DataError("The prediction log holds no answers of that time. Start `recsys serve` and ask it something.")
    before_s = since_s - HORIZON_S
    earlier = answers[(received >= before_s) & (received < until_s - HORIZON_S)]
    happened = [e.occurred_at for e in table.read()]
    inputs = compare_inputs(window, reference_of, tables, thresholds, event_rate(np.array(happened), until_s, days))
    outputs = summarise_outputs(window, tables)
    came_of_it = outcomes(earlier, table, until=until_s)[0] if len(earlier) else pd.DataFrame()
    return MonitorReport(
        data=tables.info.label,
        since_s=since_s,
        until_s=until_s,
        thresholds=thresholds,
        inputs=inputs,
        outputs=outputs,
        outcomes=tuple(outcome_rows(came_of_it, promised)) if len(came_of_it) else (),
        positions=tuple(position_rows(came_of_it)) if len(came_of_it) else (),
        alarms=tuple(alarms(inputs, outputs, thresholds)),
    )


def compare_inputs(
    window: pd.DataFrame,
    reference_of: Callable[[str], pd.DataFrame | None],
    tables: Tables,
    thresholds: Thresholds,
    events: EventRate | None,
) -> Inputs:
    """Each feature, score and probability, new users and the age of what is shown, against the reference."""
    starts = window[window["score"].notna() & (window[USER_ID] != NONE)]
    compared = dict[str, Drift]()
    inputs = Inputs(event_rate=events, not_compared="no answer to a known user was ranked")
    if len(starts):
        inputs = replace(inputs, bundle_id=str(starts["bundle_id"].mode()[0]), not_compared="")
        reference = reference_of(inputs.bundle_id)
        starts = starts[starts["bundle_id"] == inputs.bundle_id]
        if reference is None:
            inputs = replace(inputs, not_compared=f"{inputs.bundle_id} carries no reference: train again")
        else:
            names = [name for name in (*SCORES, *feature_columns(reference)) if name in starts]
            starts, reference = (_visit_starts(rows, tables) for rows in (starts, reference))
            users = (starts[USER_ID].nunique(), reference[USER_ID].nunique())
            inputs = replace(
                inputs, visits=len(starts[ANSWER].drop_duplicates()), users=users[0], reference_users=users[1]
            )
            if min(users) < FEWEST_USERS:
                why = f"{users[0]} users visited, the reference has {users[1]}; {FEWEST_USERS} of each are needed"
                inputs = replace(inputs, not_compared=why)
            else:
                compared = {
                    name: drift(Sample(reference[name], reference[USER_ID]), Sample(starts[name], starts[USER_ID]))
                    for name in (*names, "new_user", "catalogue_age_years")
                }
    p_values = {name: each.p_value for name, each in compared.items()} | (
        {EVENT_RATE: events.p_value} if events else {}
    )
    unlikely = holm(p_values, thresholds.false_alarms)
    if events is not None:
        large = not 1 / thresholds.event_factor < events.factor < thresholds.event_factor
        inputs = replace(inputs, event_rate=replace(events, alarm=EVENT_RATE in unlikely and large))
    rows = [Input(n, d, n in unlikely and d.psi >= thresholds.smallest_psi) for n, d in compared.items()]
    return replace(inputs, compared=tuple(sorted(rows, key=lambda row: (-row.drift.psi, row.name))))


def event_rate(occurred_at: DoubleArray, until_s: int, days: int) -> EventRate | None:
    """The days of the window against up to BEFORE_DAYS before it, by a t-test of the logarithm of the daily counts;
    None where there are fewer than FEWEST_DAYS of them. A day ends with the window, not at midnight."""
    age = (until_s - 1 - occurred_at[occurred_at < until_s]) // DAY_S  # days before the end
    n_days = min(int(age.max(initial=-1)) + 1, days + BEFORE_DAYS)
    if n_days < days + FEWEST_DAYS:
        return None
    counts = np.log(np.bincount(age.astype(np.int64), minlength=n_days)[:n_days] + 0.5)
    p_value = float(ttest_ind(counts[:days], counts[days:]).pvalue)
    return EventRate(float(np.exp(counts[:days].mean())), float(np.exp(counts[days:].mean())), p_value)


def summarise_outputs(window: pd.DataFrame, tables: Tables) -> Outputs:
    answers = window.drop_duplicates(ANSWER)
    ratings = tables.events[ITEM_ID].value_counts()
    popular = ratings.index[: round(POPULAR * len(tables.items))]
    quantiles = window[list(SCORES)].astype(np.float64).quantile([0.05, 0.5, 0.95])
    return Outputs(
        answers=len(answers),
        users=int(answers[USER_ID].nunique()),
        degraded=float((answers["degraded"] != "").mean()),
        coverage=window[ITEM_ID].nunique() / len(tables.items),
        popularity=float(window[ITEM_ID].isin(popular).mean()),
        distributions=tuple(
            Distribution(name, float(window[name].mean()), *map(float, quantiles[name]))
            for name in SCORES
            if window[name].notna().any()
        ),
    )


def outcome_rows(rows: pd.DataFrame, promised: Mapping[int, Estimate]) -> list[Outcome]:
    """Of the rows of `outcomes`, for each version and cohort with any."""
    rows = rows.assign(gain=rows["labels"] / np.log2(rows["position"] + 1))
    unknown = pd.Series(np.nan, rows.index)  # where nothing was ranked
    user_events, ratings = (np.expm1(rows.get(name, unknown)).round() for name in ("user_events", "popularity_all"))
    new = {
        "all": rows["position"] > 0,
        "new user": user_events <= NEW_USER_EVENTS,
        "new item": ratings <= NEW_ITEM_RATINGS,
    }
    parts = [
        (int(version), cohort, part)
        for version, of_version in rows.groupby("version")
        for cohort, member in new.items()
        if len(part := of_version[member[of_version.index]])
    ]
    return [_outcome(version, cohort, part, promised.get(version)) for version, cohort, part in parts]


def position_rows(rows: pd.DataFrame) -> list[PositionOutcome]:
    figures = {"shown": ("labels", "size"), "ctr": ("labels", "mean"), "liked": ("liked", "mean")}
    grouped = rows.groupby(["version", "position"]).agg(**figures).reset_index()
    return [PositionOutcome(**each) for each in grouped.to_dict("records")]


def alarms(inputs: Inputs, outputs: Outputs, thresholds: Thresholds) -> list[str]:
    """A sentence each."""
    out = []
    for each in (row for row in inputs.compared if row.alarm):
        d = each.drift
        missing = (
            f"; missing {d.missing_before:.1%} before, {d.missing:.1%} now" if d.missing != d.missing_before else ""
        )
        out.append(f"{each.name} has shifted: PSI {d.psi:.2f}, p {d.p_value:.1g}{missing}")
    if (events := inputs.event_rate) and events.alarm:
        out.append(f"{events.per_day:,.0f} events a day, {events.before:,.0f} before: a factor of {events.factor:.2f}")
    if outputs.degraded > thresholds.degraded:
        out.append(f"{outputs.degraded:.1%} of the answers are degraded, at most {thresholds.degraded:.1%} may be")
    return out


def _visit_starts(rows: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    years = rows[ITEM_ID].map(tables.items.set_index(ITEM_ID)[YEAR]).astype(np.float64)
    rows = rows.assign(
        new_user=(rows["user_events"] == 0).astype(np.float64),
        catalogue_age_years=1970 + rows["now"] / YEAR_S - years,
    )
    return rows[~(rows["user_session_length"] > 0)]


def _outcome(version: int, cohort: str, rows: pd.DataFrame, promised: Estimate | None) -> Outcome:
    answers = rows.groupby(ANSWER).agg(gain=("gain", "sum"), n=("labels", "sum")).reset_index()
    ideal = np.concatenate([[1.0], np.cumsum(1 / np.log2(np.arange(2, 2 + int(answers["n"].max()))))])
    answers = answers.assign(ndcg=answers["gain"] / ideal[answers["n"]])
    rated = rows[rows["rated"] & rows["like_probability"].notna()]
    ranked = rows[rows["watch_probability"].notna()]
    return Outcome(
        version=version,
        cohort=cohort,
        shown=len(rows),
        users=int(rows[USER_ID].nunique()),
        ctr=_rate(rows, "labels"),
        liked=_rate(rows, "liked"),
        ndcg=_rate(answers, "ndcg") if cohort != "new item" else None,  # part of an answer has no order of its own
        watch_ece=reliability(ranked["watch_probability"].to_numpy(np.float64), ranked["labels"].to_numpy() > 0).ece,
        like_ece=reliability(rated["like_probability"].to_numpy(np.float64), rated["liked"].to_numpy(bool)).ece,
        promised_ndcg=promised if cohort == "all" else None,
    )


def _rate(rows: pd.DataFrame, metric: str) -> Estimate | None:
    try:
        return Estimate(*rate(user_totals(rows, metric)))
    except DataError:
        return None
