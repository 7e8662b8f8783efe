"""Logged answers held against their recomputation, value by value.

Stage: monitoring. In: `Recomputed` answers. Out: a `Comparison`: what differs, in how many answers, by how much.
Absent: why it differs (`diagnosis`).

Floats are equal when their bits are, and NaN equals NaN: a tolerance would hide what this check is for.

Shapes: k items shown, F features.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from recsys.arrays import BoolArray, FloatArray
from recsys.monitoring.prediction_log import MICROSECONDS
from recsys.monitoring.raw_events import RACE_S
from recsys.monitoring.recompute import Group, Recomputed

KEPT: Final = 50  # calls with a mismatch that are kept for the diagnosis, drawn uniformly
# What is compared besides the features, and how it is said.
FACTS: Final = {
    "n_events": "number of events in the state",
    "last_event": "moment of the state's last event",
    "now": "moment of the answer against the clock that received it",
    "item_statistics_day": "day of the item statistics",
    "retrieved": "candidates, their retrievers, scores and ranks",
    "candidates": "a shown item that the ranker would not have seen",
    "feature_names": "names of the features, in their order",
    "length": "number of items shown",
    "positions": "positions of the items shown",
    "propensities": "propensities of the items shown",
    "order": "items shown, in their order",
    "scores": "scores",
    "probabilities": "probabilities",
}


@dataclass
class Difference:
    """Of one feature or fact. `largest`: absolute, of features where both are numbers. `example`: where it was
    first."""

    answers: int = 0
    values: int = 0
    largest: float = 0.0
    example: str = ""


@dataclass
class Comparison:
    """compared, values: answers and feature values that were held against one another; unranked: compared answers that
    say they were made without the ranker, and have no features; mismatching: answers in which anything differs;
    left_out: answers by why they could not be compared; days_behind: answers by how many days the statistics were older
    than what a refresh just before them would have given; kept: calls with a mismatch."""

    compared: int = 0
    values: int = 0
    unranked: int = 0
    mismatching: int = 0
    features: dict[str, Difference] = field(default_factory=dict)
    facts: dict[str, Difference] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    days_behind: Counter[int] = field(default_factory=Counter)
    bundles: Counter[str] = field(default_factory=Counter)
    kept: list[Group] = field(default_factory=list)
    _calls: int = 0
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def share(self) -> float:
        return self.mismatching / max(self.compared, 1)

    def add(self, call: list[Recomputed], newest_day: int) -> None:
        """Compare the answers of one call. `newest_day`: what refreshed statistics would have been of."""
        differing = 0
        for answer in call:
            differing += self._add(answer)
            self.compared += 1
            self.unranked += "ranking" in answer.prediction.degraded
            self.bundles[answer.prediction.bundle_id] += 1
            self.days_behind[newest_day - answer.prediction.item_statistics_day] += 1
        self.mismatching += differing
        if differing:
            self._keep([answer.prediction for answer in call])

    def _keep(self, group: Group) -> None:
        """A uniform sample of the calls so far (reservoir sampling)."""
        self._calls += 1
        place = len(self.kept) if len(self.kept) < KEPT else int(self._rng.integers(self._calls))
        if place < KEPT:
            self.kept[place : place + 1] = [group]

    def _add(self, answer: Recomputed) -> bool:
        logged = answer.prediction
        differs = False
        for name, (said, found) in _facts(answer).items():
            if said != found:
                self._note(self.facts, name, 1, 0.0, f"{logged.request_id}: logged {said}, recomputed {found}")
                differs = True
        if logged.features is None or answer.features is None:
            return differs
        wrong = ~same_bits(logged.features, answer.features)
        wrong[~answer.ranked] = False  # nothing to compare with; counted as a fact
        self.values += wrong.size
        for column in np.flatnonzero(wrong.any(axis=0)):
            rows = np.flatnonzero(wrong[:, column])
            said, found = logged.features[rows, column], answer.features[rows, column]
            apart = np.abs(said.astype(np.float64) - found)
            largest = float(np.max(apart[np.isfinite(apart)], initial=0.0))
            where = f"{logged.request_id}, item {logged.item_ids[rows[0]]}"
            where += f": logged {said[0]:.9g}, recomputed {found[0]:.9g}"
            self._note(self.features, logged.feature_names[column], len(rows), largest, where)
            differs = True
        return differs

    @staticmethod
    def _note(into: dict[str, Difference], name: str, values: int, largest: float, example: str) -> None:
        found = into.setdefault(name, Difference(example=example))
        found.answers += 1
        found.values += values
        found.largest = max(found.largest, largest)


def same_bits(a: FloatArray, b: FloatArray) -> BoolArray:
    """Elementwise.

    >>> x = np.array([1.0, np.nan, 0.0, 0.1], dtype=np.float32)
    >>> same_bits(x, np.array([1.0, np.nan, -0.0, 0.1000001], dtype=np.float32)).tolist()
    [True, True, False, False]
    """
    left, right = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    return np.asarray((left.view(np.int32) == right.view(np.int32)) | (np.isnan(left) & np.isnan(right)))


def _facts(answer: Recomputed) -> Mapping[str, tuple[Any, Any]]:
    """By name: what was logged, and what it should have been. What the log lacks is a difference too: nothing else
    would tell that a column or the end of a list is not written."""
    logged = answer.prediction
    clock = max(logged.received_us // MICROSECONDS, (logged.last_event or 0) + 1)
    ranked = logged.features is None or not (~np.isnan(logged.features).all(axis=1) & ~answer.ranked).any()
    return {
        "n_events": (logged.n_events, answer.n_events),
        "last_event": (logged.last_event, answer.last_event),
        "now": (logged.now, logged.now if abs(logged.now - clock) <= RACE_S else clock),
        "item_statistics_day": (logged.item_statistics_day, answer.day),
        "retrieved": _retrieved(answer),
        "candidates": (True, bool(ranked)),
        "feature_names": (() if logged.features is None else logged.feature_names, answer.feature_names),
        "length": (len(logged.item_ids), answer.n_shown),
        "positions": (logged.positions.tolist(), list(range(1, len(logged.item_ids) + 1))),
        # 1 for each, as long as an answer is a function of its inputs
        "propensities": _floats(logged.propensities, np.ones(len(logged.item_ids), dtype=np.float32)),
        "order": (logged.item_ids.tolist(), answer.item_ids.tolist()),
        "scores": _floats(logged.scores, answer.scores),
        "probabilities": _floats(
            np.concatenate([logged.watch_probabilities, logged.like_probabilities]),
            np.concatenate([answer.watch, answer.like]),
        ),
    }


def _retrieved(answer: Recomputed) -> tuple[Any, Any]:
    """The first of names, items, ranks and scores that differs."""
    logged = answer.prediction
    pairs = (
        (logged.retriever_names, answer.retriever_names),
        (logged.candidate_ids.tolist(), answer.candidate_ids.tolist()),
        (logged.candidate_ranks.tolist(), answer.candidate_ranks.tolist()),
        _floats(logged.candidate_scores, answer.candidate_scores),
    )
    return next(((said, found) for said, found in pairs if said != found), (True, True))


def _floats(a: FloatArray, b: FloatArray) -> tuple[Any, Any]:
    """Equal where the bits are."""
    same = a.shape == b.shape and bool(same_bits(a, b).all())
    return (True, True) if same else (a.tolist(), b.tolist())
