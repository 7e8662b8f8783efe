"""Why an item is in the list: who found it, what moved its score, and reasons in words.

Stage: serving. In: the model, one user's states and what `Recommender.recommend` returned for them. Out: an
explanation an item, as plain dicts. Absent: any influence on the list.

Every reason repeats something that was measured for this item and this user; where nothing of the kind is there,
there is no reason. "Similar", "popular" and "often" are defined by the constants below.

Shapes: L items of the history, N items, D dimensions, k answers, F features.
"""

import re
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.arrays import FloatArray, IntArray
from recsys.columns import EASE, IALS, ITEM_KNN, LIKED_RATING, TWO_TOWER
from recsys.features.candidate import FEATURE_GROUPS
from recsys.features.item_stats import HALF_LIVES_DAYS, SECONDS_PER_DAY
from recsys.features.state import StateBatch
from recsys.ranking.explain import contributions
from recsys.ranking.ranker import Ranker
from recsys.recommender import Recommendations
from recsys.retrieval.covisitation import Covisitation
from serving.model import ServedModel

CLOSE_SHARE = 0.95  # similar: closer to each other than this share of all pairs of items
SAMPLE = 512  # items whose pairs stand for all
POPULAR_SHARE = 0.05  # popular: in this share of the catalogue, by ratings of the last weeks
OFTEN_SHARE, OFTEN_ITEMS = 1 / 3, 5  # often: this share of the items watched last, of so many at least
RECENT = 5  # items of the history that "watched after" looks at
HIGH_UP = 20  # places of a retriever that learns from people's histories
FROM_HISTORIES = {TWO_TOWER: "the two-tower model", EASE: "EASE", ITEM_KNN: "item-kNN", IALS: "iALS"}
MOST_CONTRIBUTIONS, MOST_REASONS = 6, 3
MONTH = HALF_LIVES_DAYS.index(30)
WEIGHT = 0.2  # of the newest time in the running mean

Body = dict[str, Any]


class Explained(NamedTuple):
    """missing: why there are no contributions; None where there are."""

    explanations: list[Body]
    missing: str | Exception | None


@dataclass(frozen=True)
class Thresholds:
    """What "similar" and "popular" mean for one model. `popular`: ratings of the last weeks, decayed."""

    model: "weakref.ref[ServedModel]"  # must not keep a model in memory that is no longer served
    close: float
    popular: float

    @classmethod
    def of(cls, model: ServedModel) -> "Thresholds":
        unit = model.recommender.unit_vectors
        sample = unit[np.linspace(0, len(unit) - 1, min(SAMPLE, len(unit))).astype(int)]
        pairs = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
        lately = model.stats.decayed[:, MONTH]
        return cls(
            weakref.ref(model),
            float(np.quantile(pairs, CLOSE_SHARE)) if len(pairs) else 1.0,
            float(np.quantile(lately, 1 - POPULAR_SHARE)) if len(lately) else 0.0,
        )


class Explainer:
    """Safe to share between threads: what it remembers is replaced in one step."""

    def __init__(self) -> None:
        self._thresholds: Thresholds | None = None
        self._ms_a_row = 0.0  # running mean of what contributions cost

    def explain(
        self,
        model: ServedModel,
        states: StateBatch,
        found: Recommendations,
        k: int,
        diversity: float,
        left_ms: float,
    ) -> Explained:
        """Explanations of the first k items of the one user in `states`. Contributions are left out where they are
        expected to take longer than what is left of `left_ms`."""
        began = time.perf_counter()
        thresholds = self._thresholds
        if thresholds is None or thresholds.model() is not model:
            thresholds = self._thresholds = Thresholds.of(model)
        position = found.position[0, :k]  # (k,)
        names = found.candidates.retriever_names
        ranks = found.candidates.retriever_ranks[0, position]  # (k, S)
        after = _ranked_places(model, found, position, diversity)
        reasons = _reasons(model, thresholds, states, position, found)
        explanations: list[Body] = [
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
        ranker = model.recommender.ranker
        if found.features is None or ranker is None:
            return Explained(explanations, "the ranker did not run")
        seen_by_ranker = np.flatnonzero(position < found.features.shape[1])
        rows = found.features[0, position[seen_by_ranker]]  # (r, F)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        expected_ms = self._ms_a_row * len(rows)
        if elapsed_ms + expected_ms > left_ms:
            self._ms_a_row *= 1 - WEIGHT  # or one stall would keep contributions out for ever
            return Explained(explanations, f"contributions take {expected_ms:.1f} ms, longer than is left")
        try:
            self._contribute(ranker, rows, [explanations[place] for place in seen_by_ranker.tolist()])
        except Exception as error:  # an explanation must not cost the answer
            return Explained(explanations, error)
        return Explained(explanations, None)

    def _contribute(self, ranker: Ranker, rows: FloatArray, explanations: list[Body]) -> None:
        """Put the largest contributions to the score of each of the (r, F) rows into its explanation."""
        if not len(rows):
            return
        began = time.perf_counter()
        parts = contributions(ranker, rows)
        for explanation, own, values in zip(explanations, parts.values, rows, strict=True):
            explanation.update(_largest(parts.names, own, values, parts.bias))
        ms = (time.perf_counter() - began) * 1e3 / len(rows)
        self._ms_a_row += (WEIGHT if self._ms_a_row else 1.0) * (ms - self._ms_a_row)


def _ranked_places(
    model: ServedModel, found: Recommendations, position: IntArray, diversity: float
) -> list[int | None]:
    """Place of each answer by score, before diversity; None where the ranker did not see it."""
    ranker = model.recommender.ranker
    if found.features is None or ranker is None:
        return [None] * len(position)
    if diversity > 0:
        scores = model.recommender.ranked_scores(found.candidates, found.features, ranker)[0]
        places = np.empty(len(scores), dtype=np.int64)
        places[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
        after = places[position].tolist()
    else:
        after = list(range(1, len(position) + 1))
    depth = found.features.shape[1]
    return [place if at < depth else None for place, at in zip(after, position.tolist(), strict=True)]


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


# -- reasons ----------------------------------------------------------------------------------------------------------


def _reasons(
    model: ServedModel,
    thresholds: Thresholds,
    states: StateBatch,
    position: IntArray,
    found: Recommendations,
) -> list[list[Body]]:
    """For each answer, the strongest kinds first, at most MOST_REASONS."""
    item_idx = found.candidates.item_idx[0, position]  # (k,)
    known = states.item_idx[0] >= 0
    history, ratings = states.item_idx[0, known], states.ratings[0, known]  # (L,), oldest first
    columns = (
        _similar(model, history, ratings, item_idx, thresholds.close),
        _watched_after(model, history, item_idx),
        _genre(model, history, item_idx),
        _collaborative(found, position, len(history)),
        _popular(model, item_idx, thresholds.popular),
    )
    return [[reason for reason in own if reason is not None][:MOST_REASONS] for own in zip(*columns, strict=True)]


def _reason(kind: str, text: str, item_id: int | None = None) -> Body:
    return {"kind": kind, "text": text, "item_id": item_id}


def _similar(
    model: ServedModel,
    history: IntArray,
    ratings: FloatArray,
    item_idx: IntArray,
    close: float,
) -> list[Body | None]:
    """The liked item of the history whose vector is closest, where it is close."""
    liked = ratings >= LIKED_RATING
    if not liked.any() or not any(retriever.name == TWO_TOWER for retriever in model.recommender.retrievers):
        return [None] * len(item_idx)
    unit = model.recommender.unit_vectors
    own, stars = history[liked], ratings[liked]
    cosine = unit[item_idx] @ unit[own].T  # (k, liked)
    best = cosine.argmax(axis=1)
    out: list[Body | None] = []
    for row, at in enumerate(best.tolist()):
        item = model.items.facts[int(own[at])]
        text = f"Because you rated {item['title']} {stars[at]:g} stars"
        out.append(_reason("similar", text, item["item_id"]) if cosine[row, at] >= close else None)
    return out


def _watched_after(model: ServedModel, history: IntArray, item_idx: IntArray) -> list[Body | None]:
    """The item among the last RECENT after which people watched this one most."""
    table = next((s for s in model.recommender.retrievers if isinstance(s, Covisitation)), None)
    recent = history[-RECENT:]
    if table is None or not len(recent):
        return [None] * len(item_idx)
    after = table.after(recent, np.broadcast_to(item_idx, (len(recent), len(item_idx))))  # (RECENT, k)
    out: list[Body | None] = []
    for column, at in enumerate(after.argmax(axis=0).tolist()):
        item = model.items.facts[int(recent[at])]
        text = f"Others watched it soon after {item['title']}, which you rated lately"
        out.append(_reason("watched_after", text, item["item_id"]) if after[at, column] > 0 else None)
    return out


def _genre(model: ServedModel, history: IntArray, item_idx: IntArray) -> list[Body | None]:
    """The item's genre that fills most of the history, where that is much."""
    if len(history) < OFTEN_ITEMS:
        return [None] * len(item_idx)
    counts = model.catalogue.genres[history].sum(axis=0)  # (G,)
    own = model.catalogue.genres[item_idx] * counts  # (k, G)
    out: list[Body | None] = []
    for row, column in enumerate(own.argmax(axis=1).tolist()):
        n = int(own[row, column])
        text = f"You often watch {model.catalogue.genre_names[column]}: {n} of your last {len(history)}"
        out.append(_reason("genre", text) if n >= OFTEN_SHARE * len(history) else None)
    return out


def _collaborative(found: Recommendations, position: IntArray, n_history: int) -> list[Body | None]:
    """Best place that a retriever gave which compares histories."""
    names = found.candidates.retriever_names
    columns = [s for s, name in enumerate(names) if name in FROM_HISTORIES]
    if not columns or not n_history:
        return [None] * len(position)
    ranks = found.candidates.retriever_ranks[0, position][:, columns].astype(np.int64)  # (k, retrievers)
    ranks[ranks == 0] = np.iinfo(np.int64).max
    out: list[Body | None] = []
    for row, at in enumerate(ranks.argmin(axis=1).tolist()):
        rank = int(ranks[row, at])
        text = f"Watched by people with a history like yours: place {rank} of {FROM_HISTORIES[names[columns[at]]]}"
        out.append(_reason("collaborative", text) if rank <= HIGH_UP else None)
    return out


def _popular(model: ServedModel, item_idx: IntArray, popular: float) -> list[Body | None]:
    lately = model.stats.decayed[item_idx, MONTH]
    day = datetime.fromtimestamp(model.stats.day * SECONDS_PER_DAY, UTC).date().isoformat()
    text = f"Popular: among the {POPULAR_SHARE:.0%} rated most in the weeks before {day}"
    return [_reason("popular", text) if n >= popular and n > 0 else None for n in lately.tolist()]
