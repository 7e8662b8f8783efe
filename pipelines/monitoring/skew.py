"""`recsys skew`: does what was served equal what should have been served?

Two questions. Equality: every logged value, recomputed (`recompute`), is the same to the bit. It has one right answer,
and the report says which values differ, in how many answers, and where most. Drift: the features of what is shown today
look like those of what the same ranker shows at the prediction points that it learnt from. That moves with the users,
so it only warns.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pandas as pd

from pipelines.monitoring.recompute import ANSWER, BY_DESIGN, Recomputed, Recomputer
from recsys.arrays import BoolArray
from recsys.columns import ITEM_ID
from recsys.errors import DataError
from recsys.monitoring.drift import Drift
from recsys.monitoring.prediction_log import NONE, feature_columns

CHECKED: Final = (
    *("shown", "position", ITEM_ID, "score", "watch_probability", "like_probability", "propensity"),
    *("now", "statistics_day"),
)
SHIFTED: Final = 0.2  # PSI above which a distribution is called shifted
SMALLEST_SAMPLE: Final = 200  # answers below which distributions say nothing
LISTED: Final = 25


@dataclass(frozen=True)
class Difference:
    """How one logged value differs from its recomputation.

    name      a feature, or a column of the prediction log; "shown" is the number of items
    answers   in how many answers; rows: for how many shown items
    largest   absolute difference where both are numbers, with the request and the item where it was, and both values
    """

    name: str
    answers: int
    rows: int
    largest: float
    request_id: str
    item_id: int
    logged: float
    recomputed: float


@dataclass(frozen=True)
class FeatureDrift(Drift):
    """Of one feature."""

    name: str = ""


@dataclass(frozen=True)
class SkewReport:
    """answers      logged answers that were looked at
    compared     those that were computed again; unranked: the ones among them that say they were not ranked
    differing    compared answers in which anything differs
    values       feature values that were compared
    left_out     answers by why they could not be compared
    drift        of each feature, the largest PSI first; empty for the reason `no_drift`
    """

    data: str
    answers: int
    compared: int
    unranked: int
    differing: int
    values: int
    left_out: dict[str, int]
    bundles: dict[str, int]
    differences: tuple[Difference, ...]
    drift: tuple[FeatureDrift, ...] = ()
    no_drift: str = ""
    about: dict[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.differing / max(self.compared, 1)

    @property
    def uncompared_share(self) -> float:
        """Of the answers that could have been compared, those without features to compare."""
        troubled = sum(n for why, n in self.left_out.items() if why not in BY_DESIGN)
        return (troubled + self.unranked) / max(troubled + self.compared, 1)

    def failures(self, *, max_mismatch: float, max_left_out: float, max_psi: float | None) -> list[str]:
        """Why the check fails, a sentence each. That nothing differs says little where little was compared."""
        out = []
        if not self.compared:
            out.append("no answer could be compared")
        elif self.uncompared_share > max_left_out:
            share = f"{self.uncompared_share:.2%}"
            out.append(f"{share} of the answers have no features to compare, at most {max_left_out:.2%} may")
        if self.share > max_mismatch:
            out.append(f"{self.share:.2%} of the answers differ, at most {max_mismatch:.2%} may")
        if max_psi is not None and self.no_drift:
            out.append(f"distributions could not be compared: {self.no_drift}")
        if max_psi is not None and (high := [d for d in self.drift if d.psi > max_psi]):
            out.append(f"{len(high)} features have a PSI above {max_psi:g}, first {high[0].name}: {high[0].psi:.2f}")
        return out

    def text(self) -> str:
        lines = [f"Data: {self.data}", self.headline()]
        if self.left_out:
            lines += ["", "Not compared:", *(f"{n:>8,}  {why}" for why, n in self.left_out.items())]
        if self.unranked:
            lines += ["", f"Compared without features: {self.unranked:,} answers that say they were not ranked."]
        if self.differences:
            lines += ["", f"{'answers':>8} {'share':>8} {'items':>8} {'largest':>10}  what differs, and where most"]
        for d in self.differences[:LISTED]:
            share = d.answers / self.compared
            where = f"{d.request_id}, item {d.item_id}: logged {d.logged:.9g}, recomputed {d.recomputed:.9g}"
            lines.append(f"{d.answers:>8,} {share:>8.2%} {d.rows:>8,} {d.largest:>10.3g}  {d.name} ({where})")
        shifted = [d for d in self.drift if d.psi > SHIFTED]
        if self.no_drift:
            lines += ["", f"Distributions were not compared: {self.no_drift}."]
        elif self.drift:
            lines += [
                "",
                f"{len(shifted)} of {len(self.drift)} features have a PSI above {SHIFTED:g} against what the ranker "
                "shows at the points that it learnt from. Other users and another time move them too: this warns.",
            ]
        if shifted:
            lines += [f"{'PSI':>8} {'KS':>8}  feature"]
            lines += [f"{d.psi:>8.3f} {'n/a' if d.ks is None else f'{d.ks:.3f}':>8}  {d.name}" for d in shifted]
        return "\n".join(lines) + "\n"

    def headline(self) -> str:
        if not self.compared:
            return f"None of {self.answers:,} logged answers could be compared."
        if not self.differing:
            return (
                f"{self.compared:,} answers with {self.values:,} feature values equal their recomputation to the bit."
            )
        return f"{self.differing:,} of {self.compared:,} answers ({self.share:.2%}) differ from their recomputation."


@dataclass
class Sample:
    """Features of what was shown, by the bundle that showed it, for the distributions."""

    parts: dict[str, list[pd.DataFrame]] = field(default_factory=dict)

    def add(self, rows: pd.DataFrame) -> None:
        features = feature_columns(rows)
        ranked = rows[rows[features].notna().any(axis=1)] if features else rows.iloc[:0]
        for bundle_id, shown in ranked.groupby("bundle_id"):
            self.parts.setdefault(str(bundle_id), []).append(shown.dropna(axis=1, how="all"))

    def of_the_most_used(self) -> tuple[str, pd.DataFrame] | None:
        """The bundle that showed most, with its rows."""
        if not self.parts:
            return None
        bundle_id = max(self.parts, key=lambda name: sum(map(len, self.parts[name])))
        return bundle_id, pd.concat(self.parts[bundle_id], ignore_index=True)


def check(
    recomputer: Recomputer, frames: Iterable[pd.DataFrame], data: str, statistics_seq: int, most: int | None = None
) -> tuple[SkewReport, Sample]:
    """Compare the answers in `frames` (`read_answers`), at most `most` of them.

    `statistics_seq` stands for that of answers whose log does not know it: what the last training took. Raises
    DataError where there are no answers.
    """
    seen = compared = unranked = differing = values = 0
    left_out, bundles = Counter[str](), Counter[str]()
    found: dict[str, list[Difference]] = {}
    sample = Sample()
    for frame in frames:
        rows = frame.assign(statistics_seq=frame["statistics_seq"].replace(NONE, statistics_seq))
        rows["answer"] = rows.groupby(ANSWER, sort=False).ngroup()
        rows = rows if most is None else rows[rows["answer"] < most - seen]
        sample.add(rows.drop(columns="answer"))
        answers = rows.drop_duplicates("answer").set_index("answer")
        why = recomputer.left_out(answers.assign(first_position=answers["position"]))
        left_out.update(why[why != ""])
        seen += len(answers)
        chosen = rows[rows["answer"].isin(answers.index[why == ""])].drop(columns="answer")
        for batch in recomputer.recompute(chosen):
            wrong, part = _differing(batch, recomputer)
            compared += part.logged["answer"].nunique()
            unranked += part.logged.loc[part.logged["degraded"].str.contains("ranking"), "answer"].nunique()
            differing += part.logged.loc[wrong.any(axis=1), "answer"].nunique()
            values += len(part.logged) * len([name for name in wrong if name not in CHECKED])
            bundles.update(part.logged.drop_duplicates("answer")["bundle_id"])
            for difference in _differences(wrong, part):
                found.setdefault(difference.name, []).append(difference)
        if most is not None and seen >= most:
            break
    if not seen:
        raise DataError("The prediction log holds no answers of that time. Start `recsys serve` and ask it something.")
    differences = sorted(map(_sum, found.values()), key=lambda d: (-d.answers, d.name))
    report = SkewReport(
        data, seen, compared, unranked, differing, values, dict(left_out.most_common()), dict(bundles.most_common()),
        tuple(differences),
    )  # fmt: skip
    return report, sample


def _differing(part: Recomputed, recomputer: Recomputer) -> tuple[pd.DataFrame, Recomputed]:
    """Which values differ; requests that differ in a batch are computed again alone before they are said to."""
    wrong = _compare(part)
    suspects = part.logged.loc[wrong.any(axis=1), "request_id"].unique()
    if len(suspects):
        chosen = part.logged["request_id"].isin(suspects)
        again = recomputer.recompute(part.logged[chosen].drop(columns=["answer", "shown"]), alone=True)
        expected = pd.concat([part.expected[~chosen], *(each.expected for each in again)]).loc[part.logged.index]
        part = Recomputed(part.logged, expected)
        wrong = _compare(part)
    return wrong, part


def _compare(part: Recomputed) -> pd.DataFrame:
    """A column for each value that the log or the recomputation has: True where they differ."""
    features = [name for name in part.expected if name not in CHECKED]
    extra = [name for name in feature_columns(part.logged) if name not in (*features, "answer", "shown")]
    wrong = {}
    for name in [*CHECKED, *features]:
        logged = part.logged[name] if name in part.logged else pd.Series(np.nan, part.logged.index)
        wrong[name] = _different(logged, part.expected[name])
    for name in extra:  # logged, but no feature of this bundle
        wrong[name] = part.logged[name].notna().to_numpy()
    return pd.DataFrame(wrong, index=part.logged.index)


def _different(logged: "pd.Series[float]", expected: "pd.Series[float]") -> BoolArray:
    """Floats are equal when their bits are, and NaN equals NaN: a tolerance would hide what this check is for."""
    if expected.dtype.kind != "f":
        return np.asarray(logged.to_numpy() != expected.to_numpy())
    a, b = (np.ascontiguousarray(values, np.float32) for values in (logged, expected))
    return np.asarray((a.view(np.int32) != b.view(np.int32)) & ~(np.isnan(a) & np.isnan(b)))


def _differences(wrong: pd.DataFrame, part: Recomputed) -> list[Difference]:
    out = []
    for name in wrong.columns[wrong.any(axis=0)]:
        logged = part.logged.loc[wrong[name]]
        said = logged[name] if name in logged else pd.Series(np.nan, logged.index)
        should = part.expected.loc[wrong[name], name] if name in part.expected else pd.Series(np.nan, logged.index)
        apart = np.abs(said.to_numpy(np.float64) - should.to_numpy(np.float64))
        worst = int(np.nan_to_num(apart, nan=-1.0).argmax())
        largest = float(np.nan_to_num(apart[worst]))
        row = logged.iloc[worst]
        answers = int(logged["answer"].nunique())
        where = (str(row["request_id"]), int(row[ITEM_ID]), float(said.iloc[worst]), float(should.iloc[worst]))
        out.append(Difference(str(name), answers, len(logged), largest, *where))
    return out


def _sum(parts: list[Difference]) -> Difference:
    worst = max(parts, key=lambda d: d.largest)
    counts = {"answers": sum(d.answers for d in parts), "rows": sum(d.rows for d in parts)}
    return Difference(**{**worst.__dict__, **counts})
