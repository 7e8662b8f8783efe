"""`recsys logs join`: logged answers and what users did next, as labelled impressions.

Stage: monitoring. In: the prediction log, the event log. Out: a Parquet file, a row for each item shown, with the
columns of the ranker's training table; `training_table` turns it into one. Absent: correction for position (positions
and propensities are there for it), and any model.

An event belongs to the last answer that showed its item to its user before it, or to the answer that it names. It
counts if it came within the horizon. An answer whose horizon has not ended yet is marked `complete` = False: what it
shows as not watched may still be.

Two passes over the log: the first keeps the keys of every impression in memory, about 50 bytes each, to find the last
answer; the second writes the features, a batch at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.atomic_io import replacing_file
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.monitoring.events import KIND, RATED, REQUEST_ID, SEEN, logged_events
from recsys.monitoring.prediction_log import MICROSECONDS, Prediction, read_predictions
from recsys.ranking.training import TrainingTable, WholeLists

HORIZON_S: Final = 86_400
LABELS: Final = "labels"  # as in the training table: 1 for what happened
FOUND: Final = b"recsys.found"  # file metadata: share of what was watched or rated that had been shown before
IMPRESSIONS: Final = pa.schema(
    [
        (REQUEST_ID, pa.string()),
        (USER_ID, pa.int64()),
        (TIMESTAMP, pa.int64()),
        (ITEM_ID, pa.int64()),
        (LABELS, pa.int32()),
        (RATING, pa.float32()),
        ("seen", pa.bool_()),
        ("complete", pa.bool_()),
        ("position", pa.int64()),
        ("propensity", pa.float32()),
        ("score", pa.float32()),
        ("bundle_id", pa.string()),
        ("received", pa.timestamp("us", tz="UTC")),
        ("degraded", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Summary:
    """by_position: position, impressions and positives of complete answers. found: share of what users with answers
    watched or rated whose item one of their answers had shown within the horizon."""

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
        lines = [
            f"{self.answers:,} answers, {self.impressions:,} impressions, {self.positives:,} watched or rated "
            f"({share:.2%}), {self.rated:,} of them rated; {self.seen:,} impressions confirmed by the client.",
            f"Of what these users watched or rated, {self.found:.1%} had been shown within the horizon.",
            f"{self.open_answers:,} answers are younger than the horizon; they are not in the table below.",
            "",
            f"{'position':>8} {'impressions':>12} {'positives':>10} {'CTR':>8}",
        ]
        for row in self.by_position.itertuples():
            lines.append(f"{row.position:>8} {row.impressions:>12,} {row.positives:>10,} {row.ctr:>8.2%}")
        return "\n".join(lines) + "\n"


def join(predictions: Path, events: Path, out: Path, *, until: int, horizon_s: int = HORIZON_S) -> Summary:
    """Write the impressions of every answer logged so far. `until`: seconds UTC up to which events are there, usually
    now. Raises DataError where nothing was logged."""
    shown, names = _shown(read_predictions(predictions))
    if not len(shown):
        raise DataError(f"{predictions} holds no answers. Start the service with `recsys serve` and ask it something.")
    happened = _attributed(shown, logged_events(events), horizon_s)
    shown = _labelled(shown, happened)
    shown["complete"] = shown["received_us"] <= (until - horizon_s) * MICROSECONDS
    done = happened[happened[KIND] != SEEN]  # that an item was shown is nothing that a user did
    found = float((done["impression"] >= 0).mean()) if len(done) else 0.0
    _write(out, read_predictions(predictions), shown, names, found)
    return _summary(shown, found)


def training_table(path: Path, feature_names: Sequence[str]) -> TrainingTable:
    """The joined impressions as the ranker's training table: complete answers that showed something that happened, in
    time order, each one context. Answers that were made without the ranker have no features and are left out.

    Raises DataError where the file lacks a feature: it is of bundles with other retrievers.
    """
    names = list(feature_names)
    if missing := [name for name in names if name not in pq.read_schema(path).names]:
        raise DataError(
            f"{path} has no feature {missing[0]!r}; these answers were given by bundles with other retrievers."
        )
    table = pd.read_parquet(path)
    table = table[table["complete"] & ~table[names].isna().all(axis=1)]
    context = [TIMESTAMP, REQUEST_ID, USER_ID]
    table = table[table.groupby(context)[LABELS].transform("max") == 1]
    table = table.sort_values([*context, "position"], kind="stable")
    groups = table.groupby(context, sort=False)
    empty = np.zeros((0, 0, len(names)), dtype=np.float32)
    nobody = np.zeros((0, 0), dtype=bool)
    found = (pq.read_schema(path).metadata or {}).get(FOUND, b"0")
    return TrainingTable(
        feature_names=tuple(names),
        features=table[names].to_numpy(np.float32),
        labels=table[LABELS].to_numpy(np.int32),
        item_id=table[ITEM_ID].to_numpy(np.int64),
        rating=table[RATING].to_numpy(np.float32),
        group_sizes=groups.size().to_numpy(np.int64),
        timestamp=groups[TIMESTAMP].first().to_numpy(np.int64),
        user_id=groups[USER_ID].first().to_numpy(np.int64),
        found=float(found.decode()),
        whole=WholeLists(empty, nobody, nobody, np.zeros(0, dtype=np.int64)),
    )


# -- first pass: who was shown what, and what of it happened -----------------------------------------------------------


def _shown(batches: Iterator[list[Prediction]]) -> tuple[pd.DataFrame, list[str]]:
    """A row for each item shown to somebody who has an id, those of an answer one after another; and the names of all
    features that any answer was ranked by."""
    parts: list[pd.DataFrame] = []
    names: dict[str, None] = {}
    for predictions in batches:
        known = [p for p in predictions if p.user_id is not None]
        if not known:
            continue
        for feature_names in {p.feature_names: None for p in known}:
            names |= dict.fromkeys(feature_names)
        lengths = [len(p.item_ids) for p in known]
        parts.append(
            pd.DataFrame(
                {
                    REQUEST_ID: np.repeat(np.array([p.request_id for p in known], dtype=object), lengths),
                    USER_ID: np.repeat(np.array([p.user_id for p in known], dtype=np.int64), lengths),
                    "received_us": np.repeat(np.array([p.received_us for p in known], dtype=np.int64), lengths),
                    ITEM_ID: np.concatenate([p.item_ids for p in known]),
                    "position": np.concatenate([p.positions for p in known]),
                }
            )
        )
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()), list(names)


def _attributed(shown: pd.DataFrame, events: pd.DataFrame, horizon_s: int) -> pd.DataFrame:
    """The events of users with answers; `impression` is the row of `shown` that each belongs to, -1 for none."""
    events = events[events[USER_ID].isin(shown[USER_ID].unique())].copy()
    # An event is stamped with whole seconds, an answer with microseconds: the end of the event's second counts.
    events["until_us"] = (events[TIMESTAMP] + 1) * MICROSECONDS - 1
    rows = shown.assign(impression=np.arange(len(shown)))
    last = pd.merge_asof(
        events.sort_values("until_us", kind="stable"),
        rows.sort_values("received_us", kind="stable")[[USER_ID, ITEM_ID, "received_us", "impression"]],
        left_on="until_us",
        right_on="received_us",
        by=[USER_ID, ITEM_ID],
        tolerance=horizon_s * MICROSECONDS,
        suffixes=("", "_of_answer"),
    )
    named = last.merge(
        rows[[REQUEST_ID, USER_ID, ITEM_ID, "impression", "received_us"]].drop_duplicates(
            [REQUEST_ID, USER_ID, ITEM_ID], keep="last"
        ),
        on=[REQUEST_ID, USER_ID, ITEM_ID],
        how="left",
        suffixes=("", "_named"),
    )
    after = named["until_us"] - named["received_us_named"]
    direct = named["impression_named"].notna() & (after >= 0) & (after <= horizon_s * MICROSECONDS)
    by_time, by_name = (named[name].to_numpy(np.float64) for name in ("impression", "impression_named"))
    chosen = np.where(direct, by_name, by_time)
    return last.assign(impression=np.where(np.isnan(chosen), -1, chosen).astype(np.int64))


def _labelled(shown: pd.DataFrame, happened: pd.DataFrame) -> pd.DataFrame:
    happened = happened[happened["impression"] >= 0]
    watched = happened.loc[happened[KIND] != SEEN, "impression"].unique()
    rated = happened[happened[KIND] == RATED].drop_duplicates("impression", keep="last").set_index("impression")[RATING]
    confirmed = happened.loc[happened[KIND] == SEEN, "impression"].unique()
    shown = shown.assign(**{LABELS: np.zeros(len(shown), dtype=np.int32), RATING: np.float32(np.nan), "seen": False})
    shown.loc[watched, LABELS] = 1
    shown.loc[rated.index, RATING] = rated.to_numpy(np.float32)
    shown.loc[confirmed, "seen"] = True
    return shown


def _summary(shown: pd.DataFrame, found: float) -> Summary:
    by = shown[shown["complete"]].groupby("position")[LABELS].agg(["size", "sum"]).reset_index()
    by.columns = pd.Index(["position", "impressions", "positives"])
    answers = shown.drop_duplicates([REQUEST_ID, USER_ID, "received_us"])
    return Summary(
        answers=len(answers),
        impressions=len(shown),
        positives=int(shown[LABELS].sum()),
        rated=int(shown[RATING].notna().sum()),
        seen=int(shown["seen"].sum()),
        open_answers=int((~answers["complete"]).sum()),
        found=found,
        by_position=by.assign(ctr=by["positives"] / by["impressions"]),
    )


# -- second pass: the features -----------------------------------------------------------------------------------------


def _write(
    out: Path, batches: Iterator[list[Prediction]], shown: pd.DataFrame, feature_names: list[str], found: float
) -> None:
    """Answers are found by their key: between the passes the service may have logged more, or merged an hour."""
    keys = zip(shown[REQUEST_ID], shown[USER_ID], shown["received_us"], strict=True)
    first_row: dict[tuple[str, int, int], int] = {}
    for row, key in enumerate(keys):
        first_row.setdefault(key, row)
    columns = {name: shown[name].to_numpy() for name in (LABELS, RATING, "seen", "complete")}
    schema = pa.schema(
        [*IMPRESSIONS, *((name, pa.float32()) for name in feature_names)], metadata={FOUND: repr(found).encode()}
    )
    with replacing_file(out) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        for predictions in batches:
            known = [(p, first_row.get((p.request_id, p.user_id or 0, p.received_us))) for p in predictions]
            chosen = [(p, row) for p, row in known if p.user_id is not None and row is not None and len(p.item_ids)]
            if chosen:
                writer.write_table(_impressions(chosen, columns, feature_names, schema))


def _impressions(
    chosen: list[tuple[Prediction, int]], columns: dict[str, Any], feature_names: list[str], schema: Any
) -> Any:
    """Some answers as rows; a feature that an answer was not ranked by is NaN."""
    answers = [p for p, _ in chosen]
    lengths = [len(p.item_ids) for p in answers]
    rows = np.concatenate([np.arange(row, row + n) for (_, row), n in zip(chosen, lengths, strict=True)])
    features = np.full((len(rows), len(feature_names)), np.nan, dtype=np.float32)
    place = {name: column for column, name in enumerate(feature_names)}
    start = 0
    for answer, n in zip(answers, lengths, strict=True):
        if answer.features is not None:
            features[start : start + n, [place[name] for name in answer.feature_names]] = answer.features
        start += n

    def each(values: list[Any], kind: Any) -> Any:
        return pa.array(values, kind).take(pa.array(np.repeat(np.arange(len(answers)), lengths)))

    table = {
        REQUEST_ID: each([p.request_id for p in answers], pa.string()),
        USER_ID: each([p.user_id for p in answers], pa.int64()),
        TIMESTAMP: each([p.now for p in answers], pa.int64()),
        ITEM_ID: np.concatenate([p.item_ids for p in answers]),
        **{name: values[rows] for name, values in columns.items()},
        "position": np.concatenate([p.positions for p in answers]),
        "propensity": np.concatenate([p.propensities for p in answers]),
        "score": np.concatenate([p.scores for p in answers]),
        "bundle_id": each([p.bundle_id for p in answers], pa.string()),
        "received": each([p.received_us for p in answers], pa.timestamp("us", tz="UTC")),
        "degraded": each([list(p.degraded) for p in answers], pa.list_(pa.string())),
        **{name: features[:, column] for name, column in place.items()},
    }
    return pa.table({name: table[name] for name in schema.names}, schema=schema)
