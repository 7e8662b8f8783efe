"""Logged answers and what users did next: one row a shown item, and totals of each user for `recsys.experiments`.

An event belongs to the answer that it names, or else to the last answer that showed its item to its user before it, and
counts within the horizon.
"""

from typing import Final

import numpy as np
import pandas as pd

from recsys.columns import ITEM_ID, LIKED_RATING, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.events import RATING_KIND, EventTable
from recsys.experiments.effects import UserTotals
from recsys.monitoring.prediction_log import ANSWER, NONE, SHOWN

HORIZON_S: Final = 86_400
IMPRESSION: Final = "impression"  # the kind of an event: the client confirms that an item was shown


def outcomes(
    answers: pd.DataFrame, table: EventTable, *, until: int, horizon_s: int = HORIZON_S
) -> tuple[pd.DataFrame, float]:
    """The rows of `read_answers` that were shown to a user with an id, with `labels` (1 for watched or rated),
    `rating`, `rated`, `liked`, `seen` (the client confirmed that it was shown) and `complete` (the horizon has passed:
    what is not watched will not be). And the share of what their users watched or rated whose item one of their answers
    had shown before.

    `until`: seconds UTC up to which events are there. Raises DataError where nothing was logged."""
    if answers.empty:
        raise DataError("The prediction log holds no answers. Start `recsys serve` and ask it something.")
    rows = answers[(answers[USER_ID] != NONE) & (answers["role"] == SHOWN)].reset_index(drop=True)
    moment = rows["received"].astype("int64") / 1e6
    events = attributed(rows.assign(moment=moment), table, horizon_s)
    counted = events.dropna(subset="row").sort_values(["moment", "number"])
    wanted, rated = counted[counted["kind"] != IMPRESSION], counted[counted["kind"] == RATING_KIND]
    unknown = rows[["state_seq", "statistics_seq"]].astype("Int64").replace(NONE, pd.NA)
    rating = rated.groupby("row")[RATING].last().reindex(rows.index).astype(np.float32)
    rows = rows.rename(columns={"now": TIMESTAMP}).assign(
        **unknown,
        labels=rows.index.isin(wanted["row"]).astype(np.int32),
        rating=rating,
        rated=rating.notna(),
        liked=rating >= LIKED_RATING,
        seen=rows.index.isin(counted.loc[counted["kind"] == IMPRESSION, "row"]),
        complete=moment <= until - horizon_s,
    )
    return rows, len(wanted) / max(int((events["kind"] != IMPRESSION).sum()), 1)


def user_totals(rows: pd.DataFrame, metric: str, per: str | None = None) -> UserTotals:
    """Of each user the sum of a column of `outcomes`, and how many rows, or the sum of the column `per`."""
    sums = rows.assign(n=1).groupby(USER_ID)[[metric, per or "n"]].sum().to_numpy(np.float64)
    return UserTotals(sums[:, 0], sums[:, 1])


def summary(impressions: pd.DataFrame, found: float) -> str:
    """`found`: the share that `outcomes` returns."""
    positives, complete = int(impressions["labels"].sum()), impressions["complete"]
    answers, young = (len(rows[ANSWER].drop_duplicates()) for rows in (impressions, impressions[~complete]))
    by_position = impressions[complete].groupby("position")["labels"]
    table = by_position.agg(impressions="size", positives="sum", ctr="mean").reset_index()
    return (
        f"{answers:,} answers, {len(impressions):,} impressions, {positives:,} watched or rated "
        f"({positives / max(len(impressions), 1):.2%}), {impressions[RATING].count():,} of them rated; "
        f"{impressions['seen'].sum():,} impressions confirmed by the client.\n"
        f"Of what these users watched or rated, {found:.1%} had been shown within the horizon.\n"
        f"{young:,} answers are younger than the horizon and not in this table:\n\n"
        f"{table.assign(ctr=table['ctr'].map('{:.2%}'.format)).to_string(index=False)}\n"
    )


def attributed(shown: pd.DataFrame, table: EventTable, horizon_s: int) -> pd.DataFrame:
    """The events of the users in `shown`; `row`: that of the item in `shown` that it counts for, or NaN.

    Moments are seconds UTC with fractions. An event is stamped with whole seconds: the end of its second counts."""
    columns = [USER_ID, ITEM_ID, "kind", RATING, TIMESTAMP, "request_id"]
    rows = [(e.user_id, e.item_id, e.kind, e.value, e.occurred_at, e.request_id) for e in table.read()]
    types = {USER_ID: np.int64, ITEM_ID: np.int64, RATING: np.float64, TIMESTAMP: np.int64}
    events = pd.DataFrame(rows, columns=columns).astype(types)
    events = events.assign(moment=events[TIMESTAMP] + 1 - 1e-6, number=np.arange(len(events)))
    events = events[events[USER_ID].isin(shown[USER_ID])].sort_values("moment", kind="stable")
    keys = [USER_ID, ITEM_ID]
    shown = shown[[*keys, "request_id", "moment"]].assign(row=shown.index).sort_values("moment", kind="stable")
    latest = pd.merge_asof(events, shown.drop(columns="request_id"), on="moment", by=keys, tolerance=horizon_s)
    named = events.merge(shown, on=[*keys, "request_id"], suffixes=("", "_shown"))
    named = named[(named["moment"] - named["moment_shown"]).between(0, horizon_s)]
    by_name = named.groupby("number")["row"].max()
    return latest.assign(row=latest["number"].map(by_name).fillna(latest["row"]))
