"""`recsys logs join`: logged answers and what users did next, as labelled impressions.

A row for each item shown to somebody who has an id: what the prediction log holds of it, features included, and
`labels` (1 for watched or rated), `rating`, `seen` (the client confirmed that it was shown) and `complete` (the horizon
has passed: what is not watched will not be).

An event belongs to the answer that it names, or else to the last answer that showed its item to its user before it, and
counts within the horizon.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pandas as pd

from recsys.atomic_io import replacing_file
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.events import EventTable

HORIZON_S: Final = 86_400

# Moments are seconds UTC with fractions. An event is stamped with whole seconds: the end of its second counts.
ATTRIBUTED: Final = """
CREATE TABLE happened AS
SELECT e.*,
  coalesce(named.impression, CASE WHEN e.moment - latest.moment <= $horizon THEN latest.impression END) AS impression
FROM events e
LEFT JOIN (SELECT request_id, user_id, item_id, moment, max(impression) AS impression FROM shown GROUP BY ALL) named
  ON (named.request_id, named.user_id, named.item_id) = (e.request_id, e.user_id, e.item_id)
  AND e.moment - named.moment BETWEEN 0 AND $horizon
ASOF LEFT JOIN shown latest
  ON latest.user_id = e.user_id AND latest.item_id = e.item_id AND latest.moment <= e.moment
WHERE e.user_id IN (SELECT user_id FROM shown)
"""
LABELLED: Final = """
CREATE TABLE labelled AS
SELECT s.*, coalesce(h.labels, 0)::INT AS labels, h.rating, coalesce(h.seen, false) AS seen,
  s.moment <= $until AS complete
FROM shown s LEFT JOIN (
  SELECT impression, bool_or(kind != 'impression')::INT AS labels, bool_or(kind = 'impression') AS seen,
    (arg_max(rating, (moment, number)) FILTER (kind = 'rating'))::FLOAT AS rating
  FROM happened GROUP BY impression
) h USING (impression)
"""
IMPRESSIONS: Final = """
SELECT logged.* RENAME (now AS timestamp), labels, rating, seen, complete
FROM logged JOIN labelled USING (request_id, user_id, received, item_id) ORDER BY impression
"""
BY_POSITION: Final = """
SELECT position, count(*) AS impressions, sum(labels)::BIGINT AS positives, avg(labels) AS ctr
FROM labelled WHERE complete GROUP BY position ORDER BY position
"""
SUMMARY: Final = """
SELECT count(DISTINCT (request_id, user_id, received)), count(*), sum(labels), count(rating), sum(seen::INT),
  count(DISTINCT (request_id, user_id, received)) FILTER (NOT complete),
  coalesce((SELECT avg((impression IS NOT NULL)::INT) FROM happened WHERE kind != 'impression'), 0)
FROM labelled
"""


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
    now. Raises DataError where nothing was logged, or a file of the log cannot be read."""
    if not list(folder.glob("*/*.parquet")):
        raise DataError(f"{folder} holds no answers. Start the service with `recsys serve` and ask it something.")
    try:
        return _join(folder, _events(table), out, until, horizon_s)
    except duckdb.IOException as error:
        raise DataError(f"{folder} cannot be read ({error}). Move that file out of it, or try again.") from error


def _join(folder: Path, events: pd.DataFrame, out: Path, until: int, horizon_s: int) -> JoinSummary:
    with duckdb.connect() as db:
        log = db.read_parquet(f"{folder}/*/*.parquet", union_by_name=True, hive_partitioning=False)
        log.filter(f"{USER_ID} IS NOT NULL").create_view("logged")
        db.register("events", events)
        keys = f"request_id, {USER_ID}, received, {ITEM_ID}, position, epoch_us(received) / 1e6 AS moment"
        # The names are ours; nothing of a request is in them.
        db.execute(f"CREATE TABLE shown AS SELECT {keys}, row_number() OVER () AS impression FROM logged")  # nosec B608
        db.execute(ATTRIBUTED, {"horizon": horizon_s})
        db.execute(LABELLED, {"until": until - horizon_s})
        with replacing_file(out) as beside:
            db.sql(IMPRESSIONS).write_parquet(str(beside), compression="zstd")
        (counts,) = db.sql(SUMMARY).fetchall()
        return JoinSummary(*map(int, counts[:-1]), found=float(counts[-1]), by_position=db.sql(BY_POSITION).df())


def _events(table: EventTable) -> pd.DataFrame:
    """The event table, `number` in the order received."""
    rows = [(e.user_id, e.item_id, e.kind, e.value, e.occurred_at, e.request_id) for e in table.read()]
    columns = [USER_ID, ITEM_ID, "kind", RATING, TIMESTAMP, "request_id"]
    kinds = {USER_ID: np.int64, ITEM_ID: np.int64, "kind": "string", RATING: np.float64, "request_id": "string"}
    events = pd.DataFrame(rows, columns=columns).astype(kinds)
    return events.assign(moment=events[TIMESTAMP].astype(float) + 1 - 1e-6, number=np.arange(len(events)))
