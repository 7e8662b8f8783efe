"""Why logged answers differ from their recomputation: what makes the differences vanish is named.

Stage: monitoring. In: calls with a mismatch, a `Recomputer`. Out: `Finding`s, the best explanation first. Absent: what
the differences are (`comparison`).

Tried are: statistics of a day before or after, a state some events behind, columns in another order, another bundle,
and ratings on another scale. The factor of a scale is estimated from the logged features. An explanation is counted by
the mismatching answers in which every feature of every item then agrees, up to rounding.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from recsys.arrays import FloatArray
from recsys.features.candidate import FEATURE_GROUPS
from recsys.features.item_stats import PRIOR_MEAN, PRIOR_RATINGS
from recsys.monitoring.comparison import Comparison, same_bits
from recsys.monitoring.recompute import Group, Hypothesis, Recomputed, Recomputer

EXPLAINS: Final = 0.9  # share of the mismatching answers from which on a hypothesis is named as the cause
RTOL, ATOL = 1e-5, 1e-6
DAYS: Final = (-1, 1, -2, 2)
BEHIND: Final = (1, 2, 3)


@dataclass(frozen=True)
class Finding:
    """share: of the mismatching answers looked at whose features then agree."""

    says: str
    share: float


def diagnose(recomputer: Recomputer, comparison: Comparison, other_bundles: Sequence[str] = ()) -> list[Finding]:
    """Every hypothesis that explains any mismatch, the best first; of equals, the simpler one, which was tried first.

    Looks at the calls among `comparison.kept` with features that differ; empty where there is none: of what else may be
    wrong, every hypothesis would say that the features agree.
    """
    ranked = [group for group in comparison.kept if group[0].features is not None]
    calls = [call for call in recomputer.recompute(ranked) if any(_differs(answer) for answer in call)]
    if not calls:
        return []
    groups = [[answer.prediction for answer in call] for call in calls]
    truth = [answer for call in calls for answer in call]
    found = []
    for hypothesis in _hypotheses(truth, recomputer, groups, other_bundles):
        again = [answer for call in recomputer.recompute(groups, hypothesis) for answer in call]
        found.append(Finding(hypothesis.says, float(np.mean([_agrees(answer) for answer in again]))))
    found += _columns(truth)
    return sorted((f for f in found if f.share > 0), key=lambda f: -f.share)


def verdict(findings: Sequence[Finding], comparison: Comparison) -> str:
    """One sentence."""
    if not comparison.mismatching:
        return "Nothing differs."
    named = [f for f in findings if f.share >= EXPLAINS]
    if named:
        best = [f for f in named if f.share == named[0].share]
        also = f" As good an explanation: {'; '.join(f.says for f in best[1:])}." if best[1:] else ""
        return f"Likely cause: {best[0].says}. It explains {best[0].share:.0%} of the mismatching answers.{also}"
    groups = mismatching_groups(comparison)
    where = f" The features that differ are of: {', '.join(groups)}." if groups else ""
    part = f" The nearest, {findings[0].says}, explains {findings[0].share:.0%}." if findings else ""
    return f"No hypothesis explains the differences.{part}{where}"


def mismatching_groups(comparison: Comparison) -> list[str]:
    """Groups of features of which any differs."""
    return [
        group
        for group, pattern in FEATURE_GROUPS.items()
        if any(re.fullmatch(pattern, name) for name in comparison.features)
    ]


def _hypotheses(
    truth: list[Recomputed], recomputer: Recomputer, groups: Sequence[Group], other_bundles: Sequence[str]
) -> Iterator[Hypothesis]:
    for days in DAYS:
        when = "after" if days > 0 else "before"
        much = "the day" if abs(days) == 1 else f"{abs(days)} days"
        yield Hypothesis(f"item statistics of {much} {when} the right one", day_shift=days)
        if abs(days) == 1:
            yield Hypothesis(
                f"item statistics of the right day that hold events up to {much} {when} it", snapshot_shift=days
            )
    for held in (True, False):
        words = "with" if held else "without"
        yield Hypothesis(f"item statistics of the right day made {words} the event log", log_in_stats=held)
    for back in BEHIND:
        yield Hypothesis(f"a stale user state, {back} event{'s' if back > 1 else ''} behind", back=back)
    for factor in _user_factors(truth):
        shown = _shown(factor)
        for scaled, of in (
            ("events", "every rating of the user before it is counted"),
            ("all", "the ratings of the state, their sums among them"),
            ("window", "the ratings in the window of the state, not their sums"),
        ):
            yield Hypothesis(f"ratings multiplied by {shown}: {of}", rating_scale=factor, scaled=scaled)
    for factor in _stats_factors(truth, recomputer):
        yield Hypothesis(
            f"ratings multiplied by {_shown(factor)}: those in the statistics of items", stats_scale=factor
        )
    named = {group[0].bundle_id for group in groups}
    names = groups[0][0].feature_names
    for other in other_bundles:
        known = None if named == {other} else recomputer.recommender(other)
        if known is not None and set(known.feature_names) == set(names):
            yield Hypothesis(f"another bundle than the answer names: {other}", bundle_id=other)


def _agrees(answer: Recomputed) -> bool:
    return answer.features is not None and bool(answer.ranked.all()) and not _differs(answer)


def _differs(answer: Recomputed) -> bool:
    """In a feature that can be compared, by more than rounding."""
    logged, found = answer.prediction.features, answer.features
    if logged is None or found is None:
        return False
    return not np.isclose(logged, found, rtol=RTOL, atol=ATOL, equal_nan=True).all()


# -- columns -----------------------------------------------------------------------------------------------------------


def _columns(truth: list[Recomputed]) -> list[Finding]:
    """Columns that hold what other columns should hold."""
    names = truth[0].prediction.feature_names
    alike = [a for a in truth if a.prediction.feature_names == names and a.features is not None and a.ranked.all()]
    if not alike:
        return []
    logged = np.concatenate([a.prediction.features for a in alike if a.prediction.features is not None])
    found = np.concatenate([a.features for a in alike if a.features is not None])
    wrong = np.flatnonzero(~same_bits(logged, found).all(axis=0))
    retriever = {int(c): _same_column(logged[:, c], found, [int(w) for w in wrong if w != c]) for c in wrong}
    moved = {column: at for column, at in retriever.items() if at is not None}
    if not moved:
        return []
    order = np.arange(len(names))
    order[list(moved)] = list(moved.values())
    agree = [
        a.prediction.features is not None
        and a.features is not None
        and bool(same_bits(a.prediction.features, a.features[:, order]).all())
        for a in alike
    ]
    swapped = [(c, at) for c, at in moved.items() if moved.get(at) == c and c < at]
    if 2 * len(swapped) == len(moved):
        says = "feature columns swapped: " + ", ".join(f"{names[a]} and {names[b]}" for a, b in swapped)
    else:
        says = "feature columns out of place: " + ", ".join(f"{names[c]} holds {names[at]}" for c, at in moved.items())
    return [Finding(says, float(np.sum(agree)) / len(truth))]


def _same_column(values: FloatArray, found: FloatArray, others: list[int]) -> int | None:
    """The other mismatching column whose values these are."""
    return next((c for c in others if same_bits(values, found[:, c]).all()), None)


# -- factors -----------------------------------------------------------------------------------------------------------


def _user_factors(truth: list[Recomputed]) -> list[float]:
    """By which the logged ratings of users differ from the recomputed ones."""
    factors = []
    for name in ("user_last_rating", "user_mean_rating"):
        pairs = [pair for answer in truth for pair in _pairs(answer, name)]
        factors += _factor([said / found for said, found in pairs if found])
    return list(dict.fromkeys(factors))


def _stats_factors(truth: list[Recomputed], recomputer: Recomputer) -> list[float]:
    """The same for the ratings of items: `mean_rating` is (s + p m) / (n + p), with s the sum of n ratings."""
    ratios = []
    for answer in truth:
        recommender = recomputer.recommender(answer.prediction.bundle_id)
        if recommender is None:
            continue
        stats = recomputer.raw.stats(answer.prediction.bundle_id, recommender.catalogue, answer.day)
        idx = recommender.catalogue.to_idx(answer.prediction.item_ids)
        for i, (said, _) in zip(idx, _pairs(answer, "mean_rating"), strict=False):
            if stats.rating_sum[i]:
                sum_said = said * (stats.n_ratings[i] + PRIOR_RATINGS) - PRIOR_RATINGS * PRIOR_MEAN
                ratios.append(float(sum_said / stats.rating_sum[i]))
    return _factor(ratios)


def _pairs(answer: Recomputed, name: str) -> list[tuple[float, float]]:
    """(logged, recomputed) of one feature, a pair an item."""
    logged, names = answer.prediction.features, answer.prediction.feature_names
    if logged is None or answer.features is None or name not in names:
        return []
    column = names.index(name)
    return list(zip(logged[:, column].tolist(), answer.features[:, column].tolist(), strict=True))


def _factor(ratios: Sequence[float]) -> list[float]:
    """The median ratio, as a simple fraction where it is near one; none where it is 1."""
    finite = [r for r in ratios if np.isfinite(r)]
    if not finite:
        return []
    median = float(np.median(finite))
    simple = Fraction(median).limit_denominator(20)
    factor = float(simple) if abs(float(simple) - median) < 1e-3 * abs(median) else median
    return [factor] if factor > 0 and abs(factor - 1) > 1e-3 else []


def _shown(factor: float) -> str:
    return f"{factor:.4g}"
