"""The answer without HTTP: stage by stage, and against the bare libraries of the same run.

Stage: serving (benchmark). In: a store and a loaded bundle. Out: percentiles by stage and by number of ranked
candidates; the bare calls; overhead = median full answer / sum of the medians of the bare calls, and the same of
processor time, which other work on the machine spoils less. Absent: HTTP.

A full answer here is everything between a user's id and the bytes of the answer but HTTP itself: the state is read,
turned into arrays, recommended for, and the answer is built and serialised.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from recsys.bundle import Bundle
from recsys.errors import ConfigError
from recsys.evaluation.latency import TOTAL, interleaved, percentiles_ms
from recsys.feature_store import FeatureStore
from recsys.features.item_stats import ItemStats
from recsys.features.state import StateBatch, UserState, state_batch
from recsys.recommender import Recommendations, Recommender, RequestContext
from serving.bench.bare import BESIDE, IN_SUM, Asked, BareLibraries

RANKED = (100, 300, 500)
HEADLINE = 300
OWN = {"feast": "own_read", "tower": "own_tower", "lightgbm": "own_ranker"}
USERS = 50  # the bare calls' inputs are prepared for so many


def measure(
    bundle: Bundle,
    stats: ItemStats,
    store: FeatureStore,
    user_ids: list[int],
    *,
    now: int,
    k: int,
    n: int,
    warmup: int,
    ranked: tuple[int, ...] = RANKED,
) -> dict[str, Any]:
    """`ranked` is cut to what the bundle keeps; "headline" is HEADLINE, or the most that there is."""
    full = bundle.recommender
    if full.ranker is None:
        raise ConfigError("latency: the bundle has no ranker, so that there is no full answer to measure")
    context = RequestContext(stats)
    users = user_ids[:USERS]
    depths = sorted({min(depth, full.settings.keep) for depth in ranked})
    by_depth: dict[str, Any] = {}
    for depth in depths:
        recommender = ranking(full, depth)
        by_depth[str(depth)] = _one_depth(recommender, bundle, context, store, users, now, k, n, warmup)
    headline = str(HEADLINE if HEADLINE in depths else depths[-1])
    return {"n": n, "warmup": warmup, "users": len(users), "headline": headline, "ranked": by_depth}


def ranking(full: Recommender, depth: int) -> Recommender:
    """The same recommender, reordering `depth` candidates."""
    return Recommender(
        full.catalogue, full.retrievers, full.ranker, replace(full.settings, rank=depth), full.probabilities
    )


def _one_depth(
    recommender: Recommender,
    bundle: Bundle,
    context: RequestContext,
    store: FeatureStore,
    users: list[int],
    now: int,
    k: int,
    n: int,
    warmup: int,
) -> dict[str, Any]:
    stages: dict[str, list[float]] = defaultdict(list)

    def answer(i: int) -> bytes:
        user_id = users[i % len(users)]
        found = recommender.recommend(states_of(recommender, store, user_id, now), context, k)
        for stage, ms in found.timings_ms.items():
            stages[stage].append(ms)
        return orjson.dumps(as_dict(user_id, found, recommender))

    bare = BareLibraries(bundle.folder, recommender, store)
    prepared = []
    for user_id in users:
        states = states_of(recommender, store, user_id, now)
        found = recommender.recommend(states, context, k)
        assert found.features is not None  # there is a ranker and no budget
        prepared.append(bare.calls(Asked(user_id, states, found.features[0], as_dict(user_id, found, recommender))))

    def of(name: str) -> Callable[[int], object]:
        return lambda i: prepared[i % len(prepared)][name]()

    names = [name for name in (*IN_SUM, *BESIDE) if name in prepared[0]]
    took = interleaved(
        {
            TOTAL: answer,
            "state": lambda i: states_of(recommender, store, users[i % len(users)], now),
            **{name: of(name) for name in names},
        },
        n=n,
        warmup=warmup,
    )
    inside = {stage: percentiles_ms(values[warmup:]) for stage, values in stages.items()}
    medians = {name: percentiles_ms(took.wall_ms[name])["p50_ms"] for name in names}
    cpu = {name: percentiles_ms(took.cpu_ms[name])["p50_ms"] for name in names}
    cpu_total = percentiles_ms(took.cpu_ms[TOTAL])["p50_ms"]
    total = percentiles_ms(took.wall_ms[TOTAL])
    return {
        "stages": {"state": percentiles_ms(took.wall_ms["state"]), **inside, TOTAL: total},
        "bare": medians,
        **ratios(total["p50_ms"], medians),
        "cpu": {"total_ms": cpu_total, "bare": cpu, **ratios(cpu_total, cpu)},
    }


def ratios(total_ms: float, medians: dict[str, float]) -> dict[str, float]:
    """bare_sum_ms and overhead; the same with the selection counted in, and against what the product runs in place of
    some of them (OWN).

    >>> found = ratios(6.0, {"feast": 1.0, "tower": 1.0, "lightgbm": 2.0, "selection": 1.0, "own_ranker": 0.5})
    >>> found["overhead"], found["overhead_with_selection"], found["own_sum_ms"]
    (1.5, 1.2, 2.5)
    """
    bare = sum(medians[name] for name in IN_SUM if name in medians)
    own = bare + sum(
        medians[ours] - medians[theirs] for theirs, ours in OWN.items() if theirs in medians and ours in medians
    )
    selection = medians.get("selection", 0.0)
    return {
        "bare_sum_ms": bare,
        "overhead": total_ms / bare,
        "overhead_with_selection": total_ms / (bare + selection),
        "own_sum_ms": own,
        "overhead_of_own": total_ms / own,
    }


def states_of(recommender: Recommender, store: FeatureStore, user_id: int, now: int) -> StateBatch:
    """One read of the store, as arrays."""
    stored = store.online_state(user_id, at_once=True)
    state, seen = stored if stored is not None else (UserState(user_id), np.empty(0, dtype=np.int64))
    return state_batch(recommender.catalogue, [state], [seen], now)


def as_dict(user_id: int, found: Recommendations, recommender: Recommender) -> dict[str, Any]:
    """What the service sends, in essence: ids, titles, years, genres, scores, probabilities, retrievers."""
    catalogue = recommender.catalogue
    names = found.candidates.retriever_names
    items = []
    idx = catalogue.to_idx(found.item_ids[0])
    for place, (row, position) in enumerate(zip(idx.tolist(), found.position[0].tolist(), strict=True)):
        if row < 0:
            break
        ranks = found.candidates.retriever_ranks[0, position].tolist()
        items.append(
            {
                "item_id": int(catalogue.item_ids[row]),
                "title": catalogue.titles[row],
                "year": None if np.isnan(catalogue.years[row]) else int(catalogue.years[row]),
                "genres": catalogue.genres_of(row),
                "rank": place + 1,
                "score": float(found.scores[0, place]),
                "watch_probability": float(found.watch_probability[0, place]),
                "like_probability": float(found.like_probability[0, place]),
                "retrievers": [name for name, rank in zip(names, ranks, strict=True) if rank > 0],
            }
        )
    return {"user_id": user_id, "degraded": list(found.degraded), "items": items, "timings_ms": found.timings_ms}
