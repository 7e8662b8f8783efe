"""`recsys logs join`: logged answers and what users did next, as labelled impressions.

A row for each item shown to somebody who has an id: what the prediction log holds of it, features included, and
`labels` (1 for watched or rated), `rating`, `seen` (the client confirmed that it was shown) and `complete` (the horizon
has passed: what is not watched will not be). Nothing corrects for position; positions and propensities are in the rows.

An event belongs to the answer that it names, or else to the last answer that showed its item to its user before it, and
counts within the horizon.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.atomic_io import replacing_file
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.events import RATING_KIND, EventTable
from recsys.monitoring.prediction_log import NONE, feature_columns, read_answers

HORIZON_S: Final = 86_400
IMPRESSION_KIND: Final = "impression"  # of an event that says no more than that an item was shown
ANSWER: Final = ["request_id", USER_ID, "received"]
KEY: Final = [*ANSWER, ITEM_ID]
LABELS: Final = ["labels", RATING, "seen", "complete"]


@dataclass(frozen=True)
class JoinSummary:
    """by_position  position, impressions and positives of complete answers
    found        share of what users with answers watched or rated whose item one of their answers had shown before
    """

    answers: int
    impressions: int
    positives: int
    rated: int
    seen: int
    open_answers: int
    found: float
    by_position: pd.DataFrame

    def text(self) -> str:
        share = self.positives / max(self.impressions, 1)
        table = self.by_position.to_string(index=False, formatters={"ctr": "{:.2%}".format})
        return (
            f"{self.answers:,} answers, {self.impressions:,} impressions, {self.positives:,} watched or rated "
            f"({share:.2%}), {self.rated:,} of them rated; {self.seen:,} impressions confirmed by the client.\n"
            f"Of what these users watched or rated, {self.found:.1%} had been shown within the horizon.\n"
            f"{self.open_answers:,} answers are younger than the horizon and not in this table:\n\n{table}\n"
        )


def join(folder: Path, table: EventTable, out: Path, *, until: int, horizon_s: int = HORIZON_S) -> JoinSummary:
    """Write the impressions of every logged answer to `out`. `until`: seconds UTC up to which events are there, usually
    now. Raises DataError where nothing was logged.

    Reads the log twice: for the keys of all impressions, then for their features, a part at a time.
    """
    keys, features = [], dict[str, None]()
    for frame in _known(folder):
        keys.append(frame[[*KEY, "position"]])
        features |= dict.fromkeys(feature_columns(frame))
    if not keys:
        raise DataError(f"{folder} holds no answers. Start the service with `recsys serve` and ask it something.")
    shown = pd.concat(keys, ignore_index=True)
    happened = _attributed(shown, _events(table), pd.Timedelta(seconds=horizon_s))
    labelled = _labelled(shown, happened)
    labelled["complete"] = labelled["received"] <= pd.Timestamp(until - horizon_s, unit="s", tz="UTC")
    with replacing_file(out) as beside:
        writer: pq.ParquetWriter | None = None
        for frame in _known(folder):  # what was logged since the first pass has no labels, and falls out
            part = frame.merge(labelled[[*KEY, *LABELS]], on=KEY).rename(columns={"now": TIMESTAMP})
            missing = {name: np.float32(np.nan) for name in features if name not in part}
            part = part.assign(**missing)[[name for name in part if name not in features] + list(features)]
            rows = pa.Table.from_pandas(part, preserve_index=False)
            writer = writer or pq.ParquetWriter(beside, rows.schema, compression="zstd")
            writer.write_table(rows.cast(writer.schema))
        if writer is not None:
            writer.close()
    return _summary(labelled, happened)


def _known(folder: Path) -> Iterator[pd.DataFrame]:
    """The logged rows of users with an id."""
    for frame in read_answers(folder):
        known = frame[frame[USER_ID] != NONE]
        if len(known):
            yield known


def _events(table: EventTable) -> pd.DataFrame:
    """The event table, in the order received. An event is stamped with whole seconds: the end of its second counts."""
    rows = [(e.user_id, e.item_id, e.kind, e.value, e.occurred_at, e.request_id) for e in table.read()]
    columns = [USER_ID, ITEM_ID, "kind", RATING, TIMESTAMP, "request_id"]
    events = pd.DataFrame(rows, columns=columns).astype({USER_ID: np.int64, ITEM_ID: np.int64, RATING: np.float32})
    end = (events[TIMESTAMP].astype(np.int64) + 1) * 1_000_000 - 1
    return events.assign(at=pd.to_datetime(end, unit="us", utc=True).astype("datetime64[us, UTC]"))


def _attributed(shown: pd.DataFrame, events: pd.DataFrame, horizon: pd.Timedelta) -> pd.DataFrame:
    """The events of users with answers; `impression` is the row of `shown` that each belongs to, -1 for none."""
    events = events[events[USER_ID].isin(shown[USER_ID].unique())].sort_values("at", kind="stable", ignore_index=True)
    rows = shown.assign(impression=np.arange(len(shown))).sort_values("received", kind="stable")
    last = pd.merge_asof(
        events.drop(columns="request_id"),
        rows[[USER_ID, ITEM_ID, "received", "impression"]],
        left_on="at",
        right_on="received",
        by=[USER_ID, ITEM_ID],
        tolerance=horizon,
    )
    by_key = rows.drop_duplicates(["request_id", USER_ID, ITEM_ID], keep="last")
    named = events.merge(by_key, on=["request_id", USER_ID, ITEM_ID], how="left")
    after = named["at"] - named["received"]
    direct = (after >= pd.Timedelta(0)) & (after <= horizon)
    chosen = named["impression"].where(direct, last["impression"])
    return events.assign(impression=chosen.fillna(-1).astype(np.int64))


def _labelled(shown: pd.DataFrame, happened: pd.DataFrame) -> pd.DataFrame:
    happened = happened[happened["impression"] >= 0]
    done = happened[happened["kind"] != IMPRESSION_KIND]
    rated = done[done["kind"] == RATING_KIND].drop_duplicates("impression", keep="last").set_index("impression")[RATING]
    shown = shown.assign(labels=np.int32(0), seen=False, **{RATING: np.float32(np.nan)})
    shown.loc[done["impression"].unique(), "labels"] = np.int32(1)
    shown.loc[rated.index, RATING] = rated
    shown.loc[happened.loc[happened["kind"] == IMPRESSION_KIND, "impression"].unique(), "seen"] = True
    return shown


def _summary(shown: pd.DataFrame, happened: pd.DataFrame) -> JoinSummary:
    done = happened[happened["kind"] != IMPRESSION_KIND]
    by = shown[shown["complete"]].groupby("position")["labels"].agg(impressions="size", positives="sum").reset_index()
    answers = shown.drop_duplicates(ANSWER)
    return JoinSummary(
        answers=len(answers),
        impressions=len(shown),
        positives=int(shown["labels"].sum()),
        rated=int(shown[RATING].notna().sum()),
        seen=int(shown["seen"].sum()),
        open_answers=int((~answers["complete"]).sum()),
        found=float((done["impression"] >= 0).mean()) if len(done) else 0.0,
        by_position=by.assign(ctr=by["positives"] / by["impressions"]),
    )
