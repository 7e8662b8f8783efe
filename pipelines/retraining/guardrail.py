"""The guardrail: does a version in shadow or canary harm, by the prediction log and what users did next?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from pipelines.retraining.policy import RetrainPolicy
from recsys.columns import ITEM_ID, USER_ID
from recsys.errors import DataError
from recsys.experiments.effects import effect
from recsys.experiments.sequential import SequentialTest
from recsys.monitoring.outcomes import user_totals
from recsys.monitoring.prediction_log import ANSWER, NONE

CHANCE = 1e-3  # of calling a version slow that is not


@dataclass(frozen=True)
class Finding:
    """n_answers: those of the new version; failures: sentences, any of which ends its way."""

    n_answers: int
    failures: tuple[str, ...]


def guardrail(ours: pd.DataFrame, theirs: pd.DataFrame, rated: pd.DataFrame, policy: RetrainPolicy) -> Finding:
    """`ours`, `theirs`: rows of `read_answers` from the new version and from the champion, in the same step; with a
    column `liked` where they were shown. `rated`: pairs user_id, item_id with `seq`, the event of the table that made
    them, 0 for the data set.
    """
    answers, reference = (rows.drop_duplicates(ANSWER) for rows in (ours, theirs))
    checks: list[Callable[[], str | None]] = [lambda: _rated_again(ours, rated, policy)]
    if min(len(answers), len(reference)) >= policy.fewest_answers:
        checks += [lambda: _degraded(answers, reference, policy), lambda: _slow(answers, reference, policy)]
    if "liked" in ours:
        checks.append(lambda: _liked_less(ours, theirs, policy))
    return Finding(len(answers), tuple(failure for check in checks if (failure := check()) is not None))


def _degraded(answers: pd.DataFrame, reference: pd.DataFrame, policy: RetrainPolicy) -> str | None:
    share, usual = (float((rows["degraded"].fillna("") != "").mean()) for rows in (answers, reference))
    if share - usual <= policy.degraded:
        return None
    return f"{share:.1%} of its answers were degraded, {usual:.1%} of the champion's"


def _slow(answers: pd.DataFrame, reference: pd.DataFrame, policy: RetrainPolicy) -> str | None:
    """One p99 of few answers is noise: so must be the number of answers that are slower than the champion's p99."""
    times, usual = (rows["total_ms"].dropna().to_numpy() for rows in (answers, reference))
    if not len(times) or not len(usual):
        return None
    p99, limit = np.percentile(times, 99), np.percentile(usual, 99)
    slower = int((times > limit).sum())
    if p99 <= policy.slowdown * limit or binomtest(slower, len(times), 0.01, "greater").pvalue > CHANCE:
        return None
    return f"its p99 is {p99:.1f} ms, the champion's {limit:.1f} ms ({policy.slowdown:g} times as long is allowed)"


def _rated_again(ours: pd.DataFrame, rated: pd.DataFrame, policy: RetrainPolicy) -> str | None:
    """Of the rows whose user's events the answer knew: `state_seq` says up to which."""
    rows = ours[ours["state_seq"].fillna(NONE) != NONE]
    if rows.empty:
        return None
    before = rows.merge(rated, on=[USER_ID, ITEM_ID])
    n = len(before[before["seq"] <= before["state_seq"]].drop_duplicates([*ANSWER, ITEM_ID]))
    if n / len(rows) <= policy.rated_again:
        return None
    return f"{n / len(rows):.1%} of the items that it listed had been rated by the user before"


def _liked_less(ours: pd.DataFrame, theirs: pd.DataFrame, policy: RetrainPolicy) -> str | None:
    """Valid at every look (`recsys.experiments.sequential`)."""
    try:
        found = effect(user_totals(theirs, "liked"), user_totals(ours, "liked"))
    except DataError:  # too few users yet
        return None
    p_value = SequentialTest(policy.liked_rate_effect).p_value(found.difference, found.standard_error)
    if found.difference >= 0 or p_value >= policy.alpha:
        return None
    return (
        f"{found.treatment:.2%} of what it showed was liked, {found.control:.2%} of the champion's (always-valid"
        f" p = {p_value:.4f})"
    )
