"""Why an item is in the list: who found it, what moved its score, and reasons in words.

Every reason repeats something that was measured for this item and this user; where nothing of the kind is there, there
is no reason. "Similar", "popular" and "often" are defined by constants here and in `served_model`. Nothing here has an
influence on the list.

Shapes: L items of the history, N items, D dimensions, k answers, F features, S retrievers.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.arrays import FloatArray, IntArray
from recsys.columns import LIKED_RATING, TWO_TOWER
from recsys.features.candidate import FEATURE_GROUPS
from recsys.features.item_stats import SECONDS_PER_DAY
from recsys.features.state import StateBatch
from recsys.ranking.ranker import Ranker
from recsys.recommender import Recommendations
from recsys.retrieval.retriever import ScoresTransitions
from serving.model_lifecycle.served_model import MONTH, POPULAR_SHARE, ServedModel

OFTEN_SHARE, OFTEN_ITEMS = 1 / 3, 5  # often: this share of the items watched last, of so many at least
RECENT = 5  # items of the history that "watched after" looks at
MOST_CONTRIBUTIONS, MOST_REASONS = 6, 3
ROWS_AT_ONCE = 10  # whose contributions are computed before the clock is looked at, about ten milliseconds

Body = dict[str, Any]


def explain(model: ServedModel, states: StateBatch, found: Recommendations, k: int, reordered: bool) -> list[Body]:
    """Explanations of the first k items of the one user in `states`, without contributions. reordered: for diversity or
    exploration, after ranking."""
    position = found.position[0, :k]  # (k,)
    names = found.candidates.retriever_names
    ranks = found.candidates.retriever_ranks[0, position]  # (k, S)
    after = _ranked_places(model, found, position, reordered)
    reasons = _reasons(model, states, position, found)
    return [
        {
            "found_by": sorted(
                ({"retriever": name, "rank": rank} for name, rank in zip(names, own, strict=True) if rank > 0),
                key=lambda one: one["rank"],
            ),
            "merged_rank": merged + 1,
            "ranked_rank": ranked,
            "contributions": None,
            "other_contributions": None,
            "bias": None,
            "reasons": why,
        }
        for merged, own, ranked, why in zip(position.tolist(), ranks.tolist(), after, reasons, strict=True)
    ]


def add_contributions(
    ranker: Ranker, found: Recommendations, explanations: Sequence[Body], in_time: Callable[[], bool]
) -> bool:
    """Put what moved each score most into the explanations, best items first, while there is time; whether all that
    the ranker scored were done."""
    if found.features is None:
        return False
    position = found.position[0, : len(explanations)]
    scored = np.flatnonzero(position < found.features.shape[1])
    for low in range(0, len(scored), ROWS_AT_ONCE):
        if not in_time():
            return False
        part = scored[low : low + ROWS_AT_ONCE]
        rows = found.features[0, position[part]]  # (r, F)
        contributions, bias = ranker.contributions(rows)
        for at, own, values in zip(part.tolist(), contributions, rows, strict=True):
            explanations[at].update(_largest(ranker.feature_names, own, values, bias))
    return True


def _ranked_places(model: ServedModel, found: Recommendations, position: IntArray, reordered: bool) -> list[int | None]:
    """Place of each answer by score, before it was reordered; None where the ranker did not see it."""
    ranker = model.recommender.ranker
    if found.features is None or ranker is None:
        return [None] * len(position)
    places = np.arange(1, len(position) + 1)
    if reordered:
        scores = model.recommender.ranked_scores(found.candidates, found.features, ranker)[0]
        places = np.argsort(np.argsort(-scores, kind="stable"))[position] + 1
    depth = found.features.shape[1]
    return [place if at < depth else None for place, at in zip(places.tolist(), position.tolist(), strict=True)]


def _largest(names: Sequence[str], own: npt.NDArray[Any], values: FloatArray, bias: float) -> Body:
    """The contributions with the largest size, and the sum of the others."""
    order = np.argsort(-np.abs(own), kind="stable")
    shown = [int(f) for f in order[:MOST_CONTRIBUTIONS] if own[f] != 0]
    return {
        "contributions": [
            {
                "feature": names[f],
                "group": group_of(names[f]),
                "value": None if np.isnan(values[f]) else round(float(values[f]), 6),
                "contribution": round(float(own[f]), 6),
            }
            for f in shown
        ],
        "other_contributions": round(float(own.sum() - own[shown].sum()), 6),
        "bias": round(float(bias), 6),
    }


@lru_cache(maxsize=1_000)
def group_of(feature: str) -> str:
    """Its group in FEATURE_GROUPS."""
    return next(group for group, pattern in FEATURE_GROUPS.items() if re.fullmatch(pattern, feature))


def _reasons(model: ServedModel, states: StateBatch, position: IntArray, found: Recommendations) -> list[list[Body]]:
    """For each answer, the strongest kinds first, at most MOST_REASONS."""
    item_idx = found.candidates.item_idx[0, position]  # (k,)
    known = states.item_idx[0] >= 0
    history, ratings = states.item_idx[0, known], states.ratings[0, known]  # (L,), oldest first
    kinds = (
        _similar(model, history, ratings, item_idx),
        _watched_after(model, history, item_idx),
        _genre(model, history, item_idx),
        _popular(model, item_idx),
    )
    return [[reason for kind in kinds if (reason := kind.get(place))][:MOST_REASONS] for place in range(len(item_idx))]


# Each of these gives the reasons of one kind, by place in the answer; there is none where it does not apply.


def _similar(model: ServedModel, history: IntArray, ratings: FloatArray, item_idx: IntArray) -> dict[int, Body]:
    """The liked item of the history whose vector is closest, where it is close."""
    liked = ratings >= LIKED_RATING
    if not liked.any() or not any(retriever.name == TWO_TOWER for retriever in model.recommender.retrievers):
        return {}
    unit = model.recommender.unit_vectors
    own, stars = history[liked], ratings[liked]
    cosine = unit[item_idx] @ unit[own].T  # (k, liked)
    reasons = {}
    for place in np.flatnonzero(cosine.max(axis=1) >= model.close).tolist():
        at = int(cosine[place].argmax())
        item = model.facts[int(own[at])]
        text = f"Because you rated {item['title']} {stars[at]:g} stars"
        reasons[place] = {"kind": "similar", "text": text, "item_id": item["item_id"]}
    return reasons


def _watched_after(model: ServedModel, history: IntArray, item_idx: IntArray) -> dict[int, Body]:
    """The item among the last RECENT after which people watched this one most."""
    table = next((s for s in model.recommender.retrievers if isinstance(s, ScoresTransitions)), None)
    recent = history[-RECENT:]
    if table is None or not len(recent):
        return {}
    after = table.after(recent, np.broadcast_to(item_idx, (len(recent), len(item_idx))))  # (RECENT, k)
    reasons = {}
    for place in np.flatnonzero(after.max(axis=0) > 0).tolist():
        item = model.facts[int(recent[after[:, place].argmax()])]
        text = f"Others watched it soon after {item['title']}, which you rated lately"
        reasons[place] = {"kind": "watched_after", "text": text, "item_id": item["item_id"]}
    return reasons


def _genre(model: ServedModel, history: IntArray, item_idx: IntArray) -> dict[int, Body]:
    """The item's genre that fills most of the history, where that is much."""
    names = model.catalogue.genre_names
    if len(history) < OFTEN_ITEMS or not names:
        return {}
    own = model.catalogue.genres[item_idx] * model.catalogue.genres[history].sum(axis=0)  # (k, G)
    reasons = {}
    for place in np.flatnonzero(own.max(axis=1) >= OFTEN_SHARE * len(history)).tolist():
        column = int(own[place].argmax())
        text = f"You often watch {names[column]}: {int(own[place, column])} of your last {len(history)}"
        reasons[place] = {"kind": "genre", "text": text, "item_id": None}
    return reasons


def _popular(model: ServedModel, item_idx: IntArray) -> dict[int, Body]:
    lately = model.stats.decayed[item_idx, MONTH]
    day = datetime.fromtimestamp(model.stats.day * SECONDS_PER_DAY, UTC).date().isoformat()
    text = f"Popular: among the {POPULAR_SHARE:.0%} rated most in the weeks before {day}"
    often = np.flatnonzero((lately >= model.popular) & (lately > 0))
    return {place: {"kind": "popular", "text": text, "item_id": None} for place in often.tolist()}
