"""The leaderboard: every method, from the plainest to the full system, measured on the same events.

`build_leaderboard` turns the ranks of a replay into a `Leaderboard`. Tables, pictures and the page are made from that
object; `leaderboard.json` is its JSON form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import pandas as pd

from recsys.arrays import IntArray
from recsys.atomic_io import write_json
from recsys.columns import LIKED_RATING, RANK, RATING, TIMESTAMP, USER_ID
from recsys.data.tables import DatasetInfo
from recsys.evaluation.beyond_accuracy import BeyondAccuracy
from recsys.evaluation.bootstrap import (
    EVENT_KEY,
    N_BOOT,
    SEED,
    Bootstrap,
    Estimate,
    PairedDifference,
    bootstrap_means_of_each,
    paired_difference,
    require_same_events,
    sorted_by_event,
)
from recsys.evaluation.cohorts import FACTS, segment_masks
from recsys.evaluation.metrics import LIST_LENGTH, METRICS, check_rank, coverage, event_values

VERSION: Final = 3
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
    """The ranks of one method in a replay.

    name         as tables show it, unique in a leaderboard
    frame        a row for each test event: user_id, timestamp (s), item_id, rating, rank (1 is best, 0 is not in
                 the list), and the facts that cohorts are formed by (`cohorts.FACTS`)
    top10_items  item ids that were in the top 10 of any event, int64, repeats allowed
    n_catalogue  items that could have been shown
    beyond       measures of the top tens
    kind         "single" for one retriever alone, "system" for several stages together
    description  one line for the reader
    """

    name: str
    frame: pd.DataFrame
    top10_items: IntArray
    n_catalogue: int
    beyond: BeyondAccuracy
    kind: Kind
    description: str = ""

    def __post_init__(self) -> None:
        if missing := [name for name in (*EVENT_KEY, RATING, RANK, *FACTS) if name not in self.frame.columns]:
            raise ValueError(f"The ranks of {self.name!r} lack the columns {', '.join(missing)}.")
        if self.kind not in get_args(Kind):
            raise ValueError(f"The kind of {self.name!r} must be one of {get_args(Kind)}, not {self.kind!r}.")
        check_rank(self.frame[RANK].to_numpy())
        coverage(self.top10_items, self.n_catalogue)


@dataclass(frozen=True)
class Segment:
    """One method on the events of one cohort. `metrics` has a None for each metric where there is no event."""

    n_events: int
    n_users: int
    metrics: Mapping[str, Estimate | None]


@dataclass(frozen=True)
class Method:
    """`coverage` is that of the top tens over all events; `segments` are by name of `cohorts.SEGMENTS`."""

    name: str
    kind: Kind
    description: str
    coverage: float
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
    """The cutoffs, in seconds since 1970 UTC and as people read them, and what an event is measured by."""

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
        """Names of up to n methods of kind "single", by NDCG@10 over all events, best first; ties by name.

        Empty where there was no test event.
        """
        found = [(m.overall[NDCG], m.name) for m in self.methods if m.kind == "single"]
        return [name for _, name in sorted((-cell.mean, name) for cell, name in found if cell is not None)][:n]

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self), "data": data_of(self.data)}


def build_leaderboard(
    methods: Sequence[MethodRanks],
    info: DatasetInfo,
    t1: int,
    t2: int,
    *,
    system: str | None = None,
    n_boot: int = N_BOOT,
    seed: int = SEED,
) -> Leaderboard:
    """Measure every method and compare the full system with each of the others.

    t1, t2   the cutoffs in seconds since 1970 UTC; events at or before t2 are refused
    system   name of the full system; by default the last method of kind "system" (none: no differences)
    Raises ValueError on: no method, a name given twice, an unknown `system`, methods that differ in events,
    ratings, facts or catalogue, cutoffs out of order, an event at or before t2.
    """
    if not methods or len({m.name for m in methods}) < len(methods):
        raise ValueError(f"A leaderboard needs methods with different names, not {[m.name for m in methods]}.")
    full = _full_system(methods, system)
    frames = _aligned(methods)
    events = frames[0]
    if t1 > t2 or (events[TIMESTAMP] <= t2).any():
        raise ValueError(f"Test events must lie after T2 = {t2}, and T1 = {t1} not after T2.")
    segments = {
        name: _segments(events[USER_ID].to_numpy()[mask], [f[RANK].to_numpy()[mask] for f in frames], n_boot, seed)
        for name, mask in segment_masks(events).items()
    }
    by_name = {m.name: frame for m, frame in zip(methods, frames, strict=True)}
    return Leaderboard(
        data=info,
        protocol=Protocol(int(t1), int(t2), utc(t1), utc(t2)),
        bootstrap=Bootstrap(n_boot, seed),
        n_catalogue=int(methods[0].n_catalogue),
        system=full,
        methods=tuple(
            Method(
                m.name,
                m.kind,
                m.description,
                coverage(m.top10_items, m.n_catalogue),
                m.beyond,
                {name: measured[number] for name, measured in segments.items()},
            )
            for number, m in enumerate(methods)
        ),
        differences=tuple(
            Difference(other, metric, difference)
            for other in by_name
            if full is not None and other != full and len(events)
            for metric, difference in paired_difference(by_name[full], by_name[other], COMPARED, n_boot, seed).items()
        ),
    )


def save_leaderboard(leaderboard: Leaderboard, path: Path) -> None:
    write_json(path, leaderboard.to_json())


def data_of(info: DatasetInfo) -> dict[str, Any]:
    """The data set, as the JSON form of a report names it."""
    return {
        "name": info.name,
        "label": info.label,
        "synthetic": info.synthetic,
        "fingerprint": info.fingerprint,
    }


def utc(timestamp_s: int) -> str:
    """A moment as people read it.

    >>> utc(86_400)
    '1970-01-02 00:00:00 UTC'
    """
    return datetime.fromtimestamp(int(timestamp_s), tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _full_system(methods: Sequence[MethodRanks], name: str | None) -> str | None:
    if name is None:
        return next((m.name for m in reversed(methods) if m.kind == "system"), None)
    if name not in {m.name for m in methods}:
        raise ValueError(f"No method is called {name!r}; there are {', '.join(m.name for m in methods)}.")
    return name


def _aligned(methods: Sequence[MethodRanks]) -> list[pd.DataFrame]:
    """Every frame by (user_id, timestamp, item_id); all hold the same events, ratings and facts."""
    frames: list[pd.DataFrame] = []
    for method in methods:
        frame = sorted_by_event(method.frame)
        if frames:
            try:
                require_same_events(frames[0], frame)
            except ValueError as error:
                raise ValueError(f"{methods[0].name!r} and {method.name!r}: {error}") from error
            if any(not np.array_equal(frames[0][c].to_numpy(), frame[c].to_numpy()) for c in (RATING, *FACTS)):
                raise ValueError(f"{methods[0].name!r} and {method.name!r} disagree on ratings or facts of an event.")
        if method.n_catalogue != methods[0].n_catalogue:
            raise ValueError(f"{methods[0].name!r} and {method.name!r} ranked catalogues of different size.")
        frames.append(frame)
    return frames


def _segments(user_id: IntArray, ranks: Sequence[IntArray], n_boot: int, seed: int) -> list[Segment]:
    """Every method on the events of one segment."""
    if not user_id.size:
        return [Segment(0, 0, dict.fromkeys(METRICS)) for _ in ranks]
    return [
        Segment(found.n_events, found.n_users, dict(zip(METRICS, found.estimates, strict=True)))
        for found in bootstrap_means_of_each(user_id, (event_values(rank) for rank in ranks), n_boot, seed)
    ]
