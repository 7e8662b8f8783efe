"""The leaderboard: every method, from the plainest to the full system, measured on the same events.

Tables, pictures and the page are made from a `Leaderboard`; `leaderboard.json` is its JSON form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import pandas as pd

from recsys.arrays import IntArray
from recsys.columns import LIKED_RATING, TIMESTAMP, USER_ID
from recsys.data.tables import DatasetInfo
from recsys.evaluation.beyond_accuracy import BeyondAccuracy
from recsys.evaluation.bootstrap import (
    N_BOOT,
    SEED,
    Bootstrap,
    Estimate,
    PairedDifference,
    bootstrap_means_of_each,
    rank_difference,
)
from recsys.evaluation.cohorts import segment_masks
from recsys.evaluation.metrics import LIST_LENGTH, METRICS, event_values

VERSION: Final = 4
ALL: Final = "all"
NDCG: Final = "ndcg@10"
COMPARED: Final = (NDCG, "hr@10")
Kind = Literal["single", "system"]

PROTOCOL: Final = (
    f"Every event (user, item, time) after T2 is replayed in order of time. The history is what the user did "
    f"strictly before that time. All items of the catalogue outside the history are ranked; the item of the event "
    f"is the one relevant item. Models are frozen at T2 (the ranker learned from events before T2); user "
    f"states move on with the events. A list has at most {LIST_LENGTH} items, and an item not in it counts as 0."
)


@dataclass(frozen=True, eq=False)
class MethodRanks:
    """What one method answered in a replay: ranks (E,), 1 is best, 0 is not in the list; beyond, measures of its top
    tens; kind, "single" for one retriever alone, "system" for several stages together."""

    name: str
    ranks: IntArray
    beyond: BeyondAccuracy
    kind: Kind
    description: str = ""


@dataclass(frozen=True, eq=False)
class Replayed:
    """Every method on the same events: user_id, timestamp (s), item_id, rating, and `cohorts.FACTS`."""

    events: pd.DataFrame
    n_catalogue: int
    methods: Sequence[MethodRanks]

    def ranks(self, name: str) -> IntArray:
        return next(method.ranks for method in self.methods if method.name == name)


@dataclass(frozen=True)
class Segment:
    """One method on the events of one cohort. `metrics` has a None for each metric where there is no event."""

    n_events: int
    n_users: int
    metrics: Mapping[str, Estimate | None]


@dataclass(frozen=True)
class Method:
    """`segments` are by name of `cohorts.SEGMENTS`."""

    name: str
    kind: Kind
    description: str
    beyond_accuracy: BeyondAccuracy
    segments: Mapping[str, Segment]

    @property
    def overall(self) -> Mapping[str, Estimate | None]:
        """The metrics over all events."""
        return self.segments[ALL].metrics


@dataclass(frozen=True)
class Difference:
    """The system minus another method in one metric, on the same events."""

    other: str
    metric: str
    value: PairedDifference


@dataclass(frozen=True)
class Protocol:
    """The cutoffs, in seconds UTC and as people read them, and what an event is measured by."""

    t1: int
    t2: int
    t1_utc: str
    t2_utc: str
    text: str = PROTOCOL
    list_length: int = LIST_LENGTH
    liked_rating: float = LIKED_RATING


@dataclass(frozen=True)
class Leaderboard:
    """Every method on the same events. `system` is the name of the full system, None where there is none."""

    data: DatasetInfo
    protocol: Protocol
    bootstrap: Bootstrap
    n_catalogue: int
    system: str | None
    methods: tuple[Method, ...]
    differences: tuple[Difference, ...]

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def difference(self, other: str, metric: str = NDCG) -> PairedDifference:
        return next(d.value for d in self.differences if (d.other, d.metric) == (other, metric))

    def best_singles(self, n: int) -> list[str]:
        """Names of up to n methods of kind "single", by NDCG@10 over all events, best first; ties by name."""
        cells = [(m.overall[NDCG], m.name) for m in self.methods if m.kind == "single"]
        return [name for _, name in sorted((-cell.mean, name) for cell, name in cells if cell is not None)][:n]

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self), "data": data_of(self.data)}


def build_leaderboard(
    replayed: Replayed,
    info: DatasetInfo,
    t1: int,
    t2: int,
    *,
    system: str | None = None,
    n_boot: int = N_BOOT,
    seed: int = SEED,
) -> Leaderboard:
    """Measure every method and compare the full system with each of the others; by default that is the last method of
    kind "system". t1, t2: the cutoffs, seconds UTC. Raises ValueError on an event at or before t2.
    """
    methods, events = replayed.methods, replayed.events
    user_id = events[USER_ID].to_numpy()
    if (events[TIMESTAMP] <= t2).any():
        raise ValueError(f"Test events must lie after T2 = {t2}.")
    full = system or next((m.name for m in reversed(methods) if m.kind == "system"), None)
    segments = {
        name: _segments(user_id[mask], [m.ranks[mask] for m in methods], n_boot, seed)
        for name, mask in segment_masks(events).items()
    }
    return Leaderboard(
        data=info,
        protocol=Protocol(int(t1), int(t2), utc(t1), utc(t2)),
        bootstrap=Bootstrap(n_boot, seed),
        n_catalogue=replayed.n_catalogue,
        system=full,
        methods=tuple(
            Method(m.name, m.kind, m.description, m.beyond, {name: parts[i] for name, parts in segments.items()})
            for i, m in enumerate(methods)
        ),
        differences=tuple(
            Difference(m.name, metric, value)
            for m in methods
            if full is not None and m.name != full and len(events)
            for metric, value in rank_difference(user_id, replayed.ranks(full), m.ranks, COMPARED, n_boot, seed).items()
        ),
    )


def _segments(user_id: IntArray, ranks: Sequence[IntArray], n_boot: int, seed: int) -> list[Segment]:
    """Every method on the events of one segment."""
    if not user_id.size:
        return [Segment(0, 0, dict.fromkeys(METRICS)) for _ in ranks]
    return [
        Segment(means.n_events, means.n_users, dict(zip(METRICS, means.estimates, strict=True)))
        for means in bootstrap_means_of_each(user_id, (event_values(rank) for rank in ranks), n_boot, seed)
    ]


def data_of(info: DatasetInfo) -> dict[str, Any]:
    """The data set, as the JSON form of a report names it."""
    return {name: getattr(info, name) for name in ("name", "label", "synthetic", "fingerprint")}


def utc(timestamp_s: int) -> str:
    """
    >>> utc(86_400)
    '1970-01-02 00:00:00 UTC'
    """
    return datetime.fromtimestamp(int(timestamp_s), tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
