"""How two registered versions differ, and what may be concluded from it.

Most of what makes NDCG@10 uncertain is which users the test window happens to hold, and that is the same for two
versions measured on the same events. So the verdict rests on the differences event by event, their 95 % interval from
a bootstrap over users (`recsys.evaluation.bootstrap`). Without them there is none: two intervals of means that overlap
hide a drop that is real.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import pandas as pd

from recsys.errors import BundleError, RegistryError
from recsys.evaluation.bootstrap import PairedDifference, paired_difference
from recsys.promotion_gate import NDCG, Interval, is_worse
from recsys.registry.records import VersionInfo

PAIRED: Final = (NDCG, "hr@10")  # the verdict is that of the first: two chances to be wrong would be more than 5 %
_T = TypeVar("_T")


@dataclass(frozen=True)
class Comparison:
    """Version b against version a. A value is None where one of them lacks it.

    metrics      of a and of b, by name
    parameters   of a and of b, those that differ
    differences  b minus a over the same events, for each metric of PAIRED; empty where the two cannot be paired
    problem      a sentence that says why they cannot
    """

    a: VersionInfo
    b: VersionInfo
    metrics: Mapping[str, tuple[Interval | None, Interval | None]]
    parameters: Mapping[str, tuple[str | None, str | None]]
    differences: Mapping[str, PairedDifference]
    problem: str | None

    @property
    def worse(self) -> bool | None:
        """None where that is unknown."""
        return is_worse(self.differences[NDCG]) if self.differences else None

    @property
    def verdict(self) -> str:
        if not self.differences:
            return f"No verdict, because the two cannot be compared event by event: {self.problem}"
        found, a, b = self.differences[NDCG], self.a.version, self.b.version
        if self.worse:
            outcome = f"Version {b} is worse than version {a}"
        elif found.above_zero:
            outcome = f"Version {b} is better than version {a}"
        else:
            outcome = f"Versions {a} and {b} cannot be told apart"
        return (
            f"{outcome}: NDCG@10 on {self.a.dataset_label} changes by {found.mean:+.4f} (95 % interval {found.low:+.4f}"
            f" to {found.high:+.4f}), paired over {found.n_events:,} events of {found.n_users:,} users."
        )


def pair(
    a: VersionInfo, b: VersionInfo, ranks: Callable[[int], pd.DataFrame]
) -> tuple[dict[str, PairedDifference], str | None]:
    """b minus a over the same test events, or none and why. `ranks` gives those of a version by its number; what it
    raises is the reason, not the caller's problem: the metrics can still be read side by side."""
    if (a.dataset, a.fingerprint) != (b.dataset, b.fingerprint):
        of_a, of_b = (f"{v.dataset_label} (data {v.fingerprint[:12]})" for v in (a, b))
        return {}, f"version {a.version} was measured on {of_a}, version {b.version} on {of_b}"
    try:
        differences = paired_difference(ranks(b.version), ranks(a.version), PAIRED)
    except (RegistryError, BundleError, ValueError) as error:
        return {}, str(error)
    if differences[NDCG].low is None:
        return {}, f"The test events are of {differences[NDCG].n_users} user(s), too few for an interval."
    return differences, None


def side_by_side(a: Mapping[str, _T], b: Mapping[str, _T]) -> dict[str, tuple[_T | None, _T | None]]:
    """By name, in the order of the names."""
    return {name: (a.get(name), b.get(name)) for name in sorted({*a, *b})}
