"""`recsys skew`: does what was served equal what should have been served?

Every logged value, recomputed (`recompute`), is the same to the bit. The report says which values differ, in how many
answers, and where most.
"""

import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Final

import numpy as np
import pandas as pd

from pipelines import training_set
from pipelines.monitoring.recompute import EXPLORED, FURTHER_PAGE, HISTORY_GIVEN, Recomputer
from recsys.arrays import BoolArray
from recsys.atomic_io import replacing_file, write_json
from recsys.bundle import load_bundle
from recsys.columns import ITEM_ID
from recsys.data.tables import load_tables
from recsys.errors import DataError, RecsysError
from recsys.evaluation.about import about, command_line
from recsys.monitoring.prediction_log import ANSWER, NONE, feature_columns, predictions_folder, read_answers
from recsys.recommender import Recommender
from recsys.settings import Settings
from recsys.threads import limited
from recsys.workspace import DatasetWorkspace

# "shown" is the number of items
CHECKED: Final = (
    *("shown", "position", ITEM_ID, "score", "watch_probability", "like_probability", "propensity"),
    *("now", "statistics_day"),
)
LEAST_COMPARED: Final = 0.5  # share of the answers, without those whose log never says enough
LISTED: Final = 25


@dataclass(frozen=True)
class Difference:
    """How one logged value, a feature or another of CHECKED, differs from its recomputation: in how many answers, for
    how many shown items (rows), and the largest absolute difference, with where it was and both values."""

    name: str
    answers: int
    rows: int
    largest: float
    request_id: str
    item_id: int
    logged: float
    recomputed: float


@dataclass(frozen=True)
class SkewReport:
    """values: of features, compared. left_out: answers by why they were not compared."""

    data: str
    answers: int
    compared: int
    differing: int
    values: int
    left_out: dict[str, int]
    differences: tuple[Difference, ...]
    about: dict[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.differing / max(self.compared, 1)

    def failures(self, max_mismatch: float) -> list[str]:
        """Why the check fails, a sentence each. That nothing differs says little where little was compared."""
        comparable = self.answers - sum(self.left_out.get(why, 0) for why in (EXPLORED, FURTHER_PAGE, HISTORY_GIVEN))
        out = []
        if self.compared < max(LEAST_COMPARED * comparable, 1):
            out.append(f"only {self.compared:,} of {comparable:,} answers could be compared")
        if self.share > max_mismatch:
            out.append(f"{self.share:.2%} of the answers differ, at most {max_mismatch:.2%} may")
        return out

    def headline(self) -> str:
        if not self.compared:
            return f"None of {self.answers:,} logged answers could be compared."
        if not self.differing:
            return f"{self.compared:,} answers and {self.values:,} feature values equal their recomputation to the bit."
        return f"{self.differing:,} of {self.compared:,} answers ({self.share:.2%}) differ from their recomputation."

    def text(self) -> str:
        lines = [f"Data: {self.data}", self.headline()]
        if self.left_out:
            lines += ["", "Not compared:", *(f"{n:>8,}  {why}" for why, n in self.left_out.items())]
        if self.differences:
            lines += ["", f"{'answers':>8} {'share':>8} {'items':>8} {'largest':>10}  what differs, and where most"]
        for d in self.differences[:LISTED]:
            where = f"{d.request_id}, item {d.item_id}: logged {d.logged:.9g}, recomputed {d.recomputed:.9g}"
            share = d.answers / self.compared
            lines.append(f"{d.answers:>8,} {share:>8.2%} {d.rows:>8,} {d.largest:>10.3g}  {d.name} ({where})")
        return "\n".join(lines) + "\n"


def check_home(home: DatasetWorkspace, settings: Settings, *, since: float = 0.0) -> SkewReport:
    """Check the answers received since a moment, seconds UTC, and write skew.json and skew.txt. Raises DataError if
    there are none."""
    data = training_set.load(home)
    rows = read_answers(predictions_folder(home), since=since)
    recommenders = dict[str, Recommender]()
    for bundle_id in rows["bundle_id"].unique():
        with suppress(RecsysError):  # it is gone, or is none that this code reads
            recommenders[bundle_id] = load_bundle(home.bundles / bundle_id).recommender
    recomputer = Recomputer(load_tables(home.data), settings.event_table(home), recommenders)
    with limited(1):
        report = check(recomputer, rows, data.tables.info.label, data.through_seq)
    report = replace(report, about=about(command_line(sys.argv[1:])))
    # JSON has no NaN, which stands for a value that the log or the recomputation does not have
    differences = [{k: None if v != v else v for k, v in asdict(each).items()} for each in report.differences]
    facts = {**asdict(report), "differences": differences, "share": report.share, "headline": report.headline()}
    write_json(home.reports / "skew.json", facts)
    with replacing_file(home.reports / "skew.txt") as beside:
        beside.write_text(report.text(), encoding="utf-8")
    return report


def check(recomputer: Recomputer, rows: pd.DataFrame, data: str, statistics_seq: int) -> SkewReport:
    """Compare logged answers (`read_answers`) with their recomputation. `statistics_seq` stands for that of answers
    whose log does not know it: what the last training took. Raises DataError where there are no answers."""
    if rows.empty:
        raise DataError("The prediction log holds no answers of that time. Start `recsys serve` and ask it something.")
    rows = rows.assign(
        statistics_seq=rows["statistics_seq"].replace(NONE, statistics_seq),
        answer=rows.groupby(ANSWER, sort=False).ngroup(),
        shown=rows.groupby(ANSWER)[ITEM_ID].transform("size"),
    )
    answers = rows.drop_duplicates("answer").set_index("answer")
    why = recomputer.left_out(answers)
    differing = values = 0
    worst = list[pd.DataFrame]()
    for logged, expected in recomputer.recompute(rows[rows["answer"].map(why) == ""]):
        values += len(logged) * (expected.shape[1] - len(CHECKED))
        if cells := _differing(logged, expected):  # these answers are computed again alone, as they were served
            again = logged[logged["answer"].isin(pd.concat(cells)["answer"])]
            cells = [each for alone in recomputer.recompute(again, size=1) for each in _differing(*alone)]
        if cells:
            differing += pd.concat(cells)["answer"].nunique()
            worst.append(_by_name(cells))
    differences = _by_name(worst).drop(columns="answer").to_dict("records") if worst else []
    return SkewReport(
        data=data,
        answers=len(answers),
        compared=int((why == "").sum()),
        differing=differing,
        values=values,
        left_out=why[why != ""].value_counts().to_dict(),
        differences=tuple(sorted((Difference(**each) for each in differences), key=lambda d: (-d.answers, d.name))),
    )


def _differing(logged: pd.DataFrame, expected: pd.DataFrame) -> list[pd.DataFrame]:
    """For each name with different values a row for each of them, in the columns of Difference, and its answer. A value
    that one of the two does not have is NaN."""
    unknown = pd.Series(np.nan, logged.index)
    out = []
    for name in dict.fromkeys([*CHECKED, *expected, *feature_columns(logged.drop(columns=["answer", "shown"]))]):
        a, b = logged.get(name, unknown), expected.get(name, unknown)
        wrong = _different(a, b)
        if wrong.any():
            a, b = a[wrong].astype(float), b[wrong].astype(float)
            cells = logged.loc[wrong, ["answer", "request_id", ITEM_ID]].assign(
                name=name, rows=1, logged=a, recomputed=b
            )
            out.append(cells.assign(answers=1 - cells.duplicated("answer"), largest=(a - b).abs().fillna(0.0)))
    return out


def _different(logged: "pd.Series[float]", expected: "pd.Series[float]") -> BoolArray:
    """Floats are equal when their bits are, and NaN equals NaN: a tolerance would hide what this check is for."""
    if expected.dtype.kind != "f":
        return np.asarray(logged.to_numpy() != expected.to_numpy())
    a, b = (np.ascontiguousarray(values, np.float32) for values in (logged, expected))
    return np.asarray((a.view(np.int32) != b.view(np.int32)) & ~(np.isnan(a) & np.isnan(b)))


def _by_name(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """The worst row of each name, with the answers and rows of all of that name."""
    cells = pd.concat(parts, ignore_index=True)
    totals = cells.groupby("name")[["answers", "rows"]].sum()
    ordered = cells.sort_values("largest", ascending=False, kind="stable")
    return ordered.drop_duplicates("name").set_index("name").assign(**totals).reset_index()
