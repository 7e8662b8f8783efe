"""`recsys skew`: does what was served equal what should have been served?

Equality: every logged value, recomputed (`recompute`), is the same to the bit. The report says which values differ, in
how many answers, and where most. Drift (`distributions`) moves with the users, so it only warns.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
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
class SkewReport:
    """answers      logged answers that were looked at
    compared     those that were computed again; unranked: the ones among them that say they were not ranked
    values       feature values that were compared
    left_out     answers by why they could not be compared
    drift        by feature, the largest PSI first; empty for the reason `no_drift`
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
    drift: dict[str, Drift] = field(default_factory=dict)
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
        if max_psi is not None and (high := [name for name, d in self.drift.items() if d.psi > max_psi]):
            worst = f"{high[0]}: {self.drift[high[0]].psi:.2f}"
            out.append(f"{len(high)} features have a PSI above {max_psi:g}, first {worst}")
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
        shifted = {name: d for name, d in self.drift.items() if d.psi > SHIFTED}
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
            for name, d in shifted.items():
                lines.append(f"{d.psi:>8.3f} {'n/a' if d.ks is None else f'{d.ks:.3f}':>8}  {name}")
        return "\n".join(lines) + "\n"

    def headline(self) -> str:
        if not self.compared:
            return f"None of {self.answers:,} logged answers could be compared."
        if not self.differing:
            return (
                f"{self.compared:,} answers with {self.values:,} feature values equal their recomputation to the bit."
            )
        return f"{self.differing:,} of {self.compared:,} answers ({self.share:.2%}) differ from their recomputation."


def check(
    recomputer: Recomputer, frames: Iterable[pd.DataFrame], data: str, statistics_seq: int
) -> tuple[SkewReport, dict[str, list[pd.DataFrame]]]:
    """Compare the answers in `frames` (`read_answers`); the report, and by bundle what it showed with features.

    `statistics_seq` stands for that of answers whose log does not know it: what the last training took. Raises
    DataError where there are no answers.
    """
    seen = compared = unranked = differing = values = 0
    left_out, bundles = Counter[str](), Counter[str]()
    found: dict[str, Difference] = {}
    shown: dict[str, list[pd.DataFrame]] = {}
    for frame in frames:
        rows = frame.assign(statistics_seq=frame["statistics_seq"].replace(NONE, statistics_seq))
        ranked = rows[rows[feature_columns(rows)].notna().any(axis=1)]
        for bundle_id, part in ranked.groupby("bundle_id"):
            shown.setdefault(str(bundle_id), []).append(part.dropna(axis=1, how="all"))
        answers = rows.drop_duplicates(ANSWER)
        why = recomputer.left_out(answers.assign(first_position=answers["position"]))
        left_out.update(why[why != ""])
        seen += len(answers)
        chosen = rows.merge(answers.loc[why == "", ANSWER], on=ANSWER)
        for batch in recomputer.recompute(chosen):
            wrong, part = _differing(batch, recomputer)
            answers = part.logged.drop_duplicates("answer")
            compared += len(answers)
            unranked += int(answers["degraded"].str.contains("ranking").sum())
            differing += part.logged.loc[wrong.any(axis=1), "answer"].nunique()
            values += len(part.logged) * len([name for name in wrong if name not in CHECKED])
            bundles.update(answers["bundle_id"])
            for d in _differences(wrong, part):
                found[d.name] = _sum(found[d.name], d) if d.name in found else d
    if not seen:
        raise DataError("The prediction log holds no answers of that time. Start `recsys serve` and ask it something.")
    report = SkewReport(
        data=data,
        answers=seen,
        compared=compared,
        unranked=unranked,
        differing=differing,
        values=values,
        left_out=dict(left_out.most_common()),
        bundles=dict(bundles.most_common()),
        differences=tuple(sorted(found.values(), key=lambda d: (-d.answers, d.name))),
    )
    return report, shown


def _differing(part: Recomputed, recomputer: Recomputer) -> tuple[pd.DataFrame, Recomputed]:
    """Which values differ; answers that differ in a batch are computed again alone before they are reported."""
    wrong = _compare(part)
    suspects = part.logged.loc[wrong.any(axis=1), "request_id"].unique()
    if not len(suspects):
        return wrong, part
    chosen = part.logged["request_id"].isin(suspects)
    again = recomputer.recompute(part.logged[chosen].drop(columns=["answer", "shown"]), size=1)
    expected = pd.concat([part.expected[~chosen], *(each.expected for each in again)]).loc[part.logged.index]
    part = Recomputed(part.logged, expected)
    return _compare(part), part


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


def _differences(wrong: pd.DataFrame, part: Recomputed) -> Iterator[Difference]:
    for name in wrong.columns[wrong.any(axis=0)]:
        logged = part.logged.loc[wrong[name]]
        unknown = pd.Series(np.nan, logged.index)
        recorded = logged.get(name, unknown)
        should = part.expected.loc[wrong[name]].get(name, unknown)
        apart = np.nan_to_num(np.abs(recorded.to_numpy(np.float64) - should.to_numpy(np.float64)), nan=-1.0)
        worst = int(apart.argmax())
        row = logged.iloc[worst]
        yield Difference(
            name=str(name),
            answers=int(logged["answer"].nunique()),
            rows=len(logged),
            largest=max(float(apart[worst]), 0.0),
            request_id=str(row["request_id"]),
            item_id=int(row[ITEM_ID]),
            logged=float(recorded.iloc[worst]),
            recomputed=float(should.iloc[worst]),
        )


def _sum(a: Difference, b: Difference) -> Difference:
    worst = a if a.largest >= b.largest else b
    return replace(worst, answers=a.answers + b.answers, rows=a.rows + b.rows)
