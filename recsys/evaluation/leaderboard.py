"""The leaderboard: every method, from the plainest to the full system, measured on the same events.

Stage: evaluate. In: a `MethodRanks` for each method. Out: one plain dict, written as `leaderboard.json`, that every
table, picture and page is made from. Absent: replaying the events (`replay`), drawing (`report`, `plots`).

Shape of the dict: `version`, `data` {name, label, synthetic, fingerprint}, `protocol` {text, t1, t2, t1_utc,
t2_utc, list_length, liked_rating}, `bootstrap` {n_boot, seed, level}, `n_catalogue`, `system` (a name or null),
`methods` [{name, kind, description, coverage@10, beyond_accuracy {name: number or null}, segments {name of
`cohorts.SEGMENTS`: {n_events, n_users, degenerate, metrics {name: {mean, low, high} or null}}}}], `differences`
[{system, other, metric, mean, low, high, fraction_not_positive, n_events, n_users, degenerate}].
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
from recsys.evaluation.beyond_accuracy import BEYOND_ACCURACY
from recsys.evaluation.bootstrap import (
    EVENT_KEY,
    LEVEL,
    N_BOOT,
    SEED,
    bootstrap_means_of_each,
    paired_difference,
    require_same_events,
    sorted_by_event,
)
from recsys.evaluation.cohorts import FACTS, segment_masks
from recsys.evaluation.metrics import LIST_LENGTH, METRICS, check_rank, coverage, event_values

VERSION: Final = 2
COMPARED: Final = ("ndcg@10", "hr@10")
Kind = Literal["single", "system"]

PROTOCOL: Final = (
    "Every event (user, item, time) after T2 is replayed in order of time. The history is what the user did "
    "strictly before that time. All items of the catalogue outside the history are ranked; the item of the event "
    "is the one relevant item. Models are frozen at T2 (the ranker learned from events before T2); user "
    "states move on with the events. A list has at most {list_length} items, and an item not in it counts as 0."
)


@dataclass(frozen=True, eq=False)
class MethodRanks:
    """What one method answered in the replay.

    name         as tables show it, unique in a leaderboard
    frame        a row for each test event: user_id, timestamp (s), item_id, rating, rank (1 is best, 0 is not in
                 the list), and the facts that cohorts are formed by (`cohorts.FACTS`)
    top10_items  item ids that were in the top 10 of any event, int64, repeats allowed
    n_catalogue  items that could have been shown
    beyond       the numbers of BEYOND_ACCURACY over the top tens
    kind         "single" for one retriever alone, "system" for several stages together
    description  one line for the reader
    """

    name: str
    frame: pd.DataFrame
    top10_items: IntArray
    n_catalogue: int
    beyond: Mapping[str, float | None]
    kind: Kind
    description: str = ""

    def __post_init__(self) -> None:
        if missing := [name for name in (*EVENT_KEY, RATING, RANK, *FACTS) if name not in self.frame.columns]:
            raise ValueError(f"The ranks of {self.name!r} lack the columns {', '.join(missing)}.")
        if self.beyond.keys() != BEYOND_ACCURACY.keys():
            raise ValueError(f"{self.name!r} needs the measures {', '.join(BEYOND_ACCURACY)}, not {list(self.beyond)}.")
        if self.kind not in get_args(Kind):
            raise ValueError(f"The kind of {self.name!r} must be one of {get_args(Kind)}, not {self.kind!r}.")
        check_rank(self.frame[RANK].to_numpy())
        coverage(self.top10_items, self.n_catalogue)


def build_leaderboard(
    methods: Sequence[MethodRanks],
    info: DatasetInfo,
    t1: int,
    t2: int,
    *,
    system: str | None = None,
    n_boot: int = N_BOOT,
    seed: int = SEED,
) -> dict[str, Any]:
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
        name: _segment(events[USER_ID].to_numpy()[mask], [f[RANK].to_numpy()[mask] for f in frames], n_boot, seed)
        for name, mask in segment_masks(events).items()
    }
    by_name = {m.name: frame for m, frame in zip(methods, frames, strict=True)}
    return {
        "version": VERSION,
        "data": data_of(info),
        "protocol": {
            "text": PROTOCOL.format(list_length=LIST_LENGTH),
            "t1": int(t1),
            "t2": int(t2),
            "t1_utc": utc(t1),
            "t2_utc": utc(t2),
            "list_length": LIST_LENGTH,
            "liked_rating": LIKED_RATING,
        },
        "bootstrap": {"n_boot": n_boot, "seed": seed, "level": LEVEL},
        "n_catalogue": int(methods[0].n_catalogue),
        "system": full,
        "methods": [
            {
                "name": method.name,
                "kind": method.kind,
                "description": method.description,
                "coverage@10": coverage(method.top10_items, method.n_catalogue),
                "beyond_accuracy": dict(method.beyond),
                "segments": {name: measured[number] for name, measured in segments.items()},
            }
            for number, method in enumerate(methods)
        ],
        "differences": [
            {"system": full, "other": other, "metric": metric, **asdict(difference)}
            for other in by_name
            if full is not None and other != full and len(events)
            for metric, difference in paired_difference(by_name[full], by_name[other], COMPARED, n_boot, seed).items()
        ],
    }


def best_singles(leaderboard: Mapping[str, Any], n: int) -> list[str]:
    """Names of up to n methods of kind "single", by NDCG@10 over all events, best first; ties by name.

    Empty where there was no test event.
    """
    cells = {
        m["name"]: m["segments"]["all"]["metrics"]["ndcg@10"] for m in leaderboard["methods"] if m["kind"] == "single"
    }
    measured = [name for name, cell in cells.items() if cell is not None]
    return sorted(measured, key=lambda name: (-cells[name]["mean"], name))[:n]


def data_of(info: DatasetInfo) -> dict[str, Any]:
    """What every table, picture and page says of its data."""
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


def save_leaderboard(leaderboard: dict[str, Any], path: Path) -> None:
    """Write the dict as JSON. A NaN in it is a ValueError, and the file is left as it was."""
    write_json(path, leaderboard)


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


def _segment(user_id: IntArray, ranks: Sequence[IntArray], n_boot: int, seed: int) -> list[dict[str, Any]]:
    """Metrics of every method on the events of one segment; nulls where the segment has no event."""
    if not user_id.size:
        return [{"n_events": 0, "n_users": 0, "degenerate": False, "metrics": dict.fromkeys(METRICS)} for _ in ranks]
    return [
        {
            "n_events": found.n_events,
            "n_users": found.n_users,
            "degenerate": found.degenerate,
            "metrics": {
                name: {"mean": float(found.mean[m]), "low": float(found.low[m]), "high": float(found.high[m])}
                for m, name in enumerate(METRICS)
            },
        }
        for found in bootstrap_means_of_each(user_id, (event_values(rank) for rank in ranks), n_boot, seed)
    ]
