"""How two registered versions differ, and what may be concluded from it.

Most of what makes NDCG@10 uncertain is which users the test window happens to hold, and that is the same for two
versions measured on the same events. So the verdict rests on the differences event by event and their 95 % interval
from a bootstrap over users. Without them there is none: two intervals of means that overlap hide a drop that is real.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import pandas as pd

from recsys.errors import BundleError, RegistryError
from recsys.evaluation.bootstrap import PairedDifference, paired_difference
from recsys.promotion_gate import NDCG, Interval
from recsys.registry.records import VersionInfo

PAIRED: Final = (NDCG, "hr@10")  # the verdict is that of the first: two chances to be wrong would be more than 5 %


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
        return self.differences[NDCG].below_zero if self.differences else None

    @property
    def verdict(self) -> str:
        if not self.differences:
            return f"No verdict, because the two cannot be compared event by event: {self.problem}"
        d, a, b = self.differences[NDCG], self.a.version, self.b.version
        if d.below_zero:
            outcome = f"Version {b} is worse than version {a}"
        elif d.above_zero:
            outcome = f"Version {b} is better than version {a}"
        else:
            outcome = f"Versions {a} and {b} cannot be told apart"
        return (
            f"{outcome}: NDCG@10 on {self.a.dataset_label} changes by {d.mean:+.4f} (95 % interval {d.low:+.4f}"
            f" to {d.high:+.4f}), paired over {d.n_events:,} events of {d.n_users:,} users."
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
