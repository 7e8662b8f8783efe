"""Larger catalogues: the index alone up to a million vectors, and the whole answer with 62,000 items.

Stage: serving (benchmark). In: the champion's bundle. Out: search times and recall by size and kind of index; the
in-process answer and the closed loop of one client in an enlarged world. Absent: quality (`enlarge` says why).

Kinds: exact, which the product uses up to `index.EXACT_UP_TO` vectors; inverted lists (IVF), its choice above; HNSW
only where asked for, because building it over a million vectors takes about ten minutes on two cores.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.arrays import FloatArray
from recsys.bundle import Bundle
from recsys.columns import ITEM_STATS_VIEW
from recsys.evaluation.latency import interleaved, percentiles_ms
from recsys.feature_store import FeatureStore
from recsys.feature_store.tables import table_path
from recsys.recommender import RequestContext
from recsys.retrieval.index import EXACT_UP_TO, Kind, VectorIndex
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever
from serving.bench.enlarge import grown_bundle, grown_statistics, grown_vectors
from serving.bench.generator import generate
from serving.bench.homes import fill_store, register, temporary_home
from serving.bench.in_process import states_of
from serving.bench.load import Plan
from serving.bench.target import own_service, recommendation_paths
from serving.model import ServedModel, freeze_gc
from serving.settings import ServiceSettings

if TYPE_CHECKING:
    from serving.bench.latency import Options


SIZES = (62_000, 1_000_000)  # vectors, after the catalogue's own; 62k is ml-25m's size
WORLD = 62_000
AT = 300  # neighbours, as many as a retriever is asked for
QUERIES = 200


def measure(
    settings: ServiceSettings,
    bundle: Bundle,
    store: FeatureStore,
    user_ids: list[int],
    options: "Options",
    *,
    now: int,
    report: Callable[[str], None],
    sizes: tuple[int, ...] = SIZES,
    world: int = WORLD,
) -> dict[str, Any]:
    """The indexes, then the world of `world` items; only a message where the bundle has no two-tower retriever."""
    tower = next((s for s in bundle.recommender.retrievers if isinstance(s, TwoTowerRetriever)), None)
    if tower is None:
        return {"message": "the bundle has no two-tower retriever, so that there are no vectors to search"}
    own = len(tower.item_vectors)
    states = [states_of(bundle.recommender, store, user_id, now) for user_id in user_ids[:QUERIES]]
    queries = np.concatenate([tower.encode(state) for state in states])
    indexes = []
    for size in (own, *(size for size in sizes if size > own)):
        indexes += _indexes(np.asarray(tower.item_vectors), queries, size, options.hnsw, report)
    found: dict[str, Any] = {"at": AT, "queries": len(queries), "indexes": indexes}
    if world > own:
        found["world"] = in_enlarged_world(settings, bundle, store, user_ids, options, now, world, report)
    return found


def _indexes(
    vectors: FloatArray, queries: FloatArray, size: int, hnsw: bool, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every kind that is worth its time at this size."""
    grown = grown_vectors(vectors, np.random.default_rng(size).integers(0, len(vectors), size - len(vectors)))
    kinds: list[Kind] = ["exact"]
    if size > EXACT_UP_TO:
        kinds += ["ivf", "hnsw"] if hnsw else ["ivf"]
    built: dict[Kind, VectorIndex] = {}
    seconds: dict[Kind, float] = {}
    for kind in kinds:
        started = time.perf_counter()
        built[kind] = VectorIndex.build(grown, kind)
        seconds[kind] = time.perf_counter() - started
    at = min(AT, size)

    def searching(index: VectorIndex) -> Callable[[int], object]:
        return lambda i: index.search(queries[i % len(queries)][None, :], at)

    n = 300 if size < EXACT_UP_TO else 50
    took = interleaved({kind: searching(index) for kind, index in built.items()}, n=n, warmup=5)
    exact, _ = built["exact"].search(queries, at)
    rows = []
    for kind, index in built.items():
        found, _ = index.search(queries, at)
        recall = float(np.mean([len(np.intersect1d(a, b)) / at for a, b in zip(exact, found, strict=True)]))
        row = {
            "vectors": size,
            "kind": kind,
            "recall": recall,
            "build_s": seconds[kind],
            **percentiles_ms(took.wall_ms[kind]),
        }
        report(f"{size:,} vectors, {kind}: p50 {row['p50_ms']:.2f} ms, recall {recall:.3f}")
        rows.append(row)
    return rows


def in_enlarged_world(
    settings: ServiceSettings,
    bundle: Bundle,
    store: FeatureStore,
    user_ids: list[int],
    options: "Options",
    now: int,
    size: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """One client's answers with `size` items, in process and over HTTP, from a temporary home that is a real one: its
    bundle is registered there, and the service loads it as it loads any."""
    known = [stored for stored in store.online_states(user_ids) if stored is not None]
    with temporary_home(settings) as there:
        made = Path(there.home.root.parent) / "made" / f"{bundle.facts.bundle_id}-{size}"
        growth = grown_bundle(bundle.folder, made, size)
        grown_statistics(table_path(there.home, ITEM_STATS_VIEW), bundle.recommender.catalogue, growth)
        fill_store(there, [(state, seen.tolist()) for state, seen in known])
        register(there, [made])
        shutil.rmtree(made)
        inside = _in_process(there, user_ids, options, now)
        report(f"{size:,} items in process: p50 {inside['total']['p50_ms']:.1f} ms")
        with own_service(there) as target:
            plan = Plan(
                target.url,
                recommendation_paths(user_ids, options.k),
                requests=options.requests,
                seconds=20.0,
                warmup=options.warmup,
            )
            load, resident_mib = generate(plan), target.resident_mib()
            n_items, ready_s = target.card()["n_items"], target.ready_s
        report(f"{size:,} items over HTTP: p50 {load.latency['p50_ms']:.1f} ms, p99 {load.latency['p99_ms']:.1f} ms")
    return {
        "n_items": n_items,
        "in_process": inside,
        "http": asdict(replace(load, counted=[])),
        "ready_s": ready_s,
        "resident_mib": resident_mib,
    }


def _in_process(settings: ServiceSettings, user_ids: list[int], options: "Options", now: int) -> dict[str, Any]:
    """Percentiles by stage, the state's read among them."""
    store = FeatureStore(settings.feature_store)
    try:
        model = ServedModel.load(settings, store, now)
        recommender, stats = model.recommender, model.stats
        freeze_gc()
        stages: dict[str, list[float]] = {}

        def answer(i: int) -> None:
            started = time.perf_counter()
            states = states_of(recommender, store, user_ids[i % len(user_ids)], now)
            read_ms = (time.perf_counter() - started) * 1e3
            found = recommender.recommend(states, RequestContext(stats), options.k)
            for stage, ms in {"state": read_ms, **found.timings_ms}.items():
                stages.setdefault(stage, []).append(ms)

        took = interleaved({"total": answer}, n=options.requests, warmup=options.warmup)
    finally:
        store.close()
    inside = {stage: percentiles_ms(values[options.warmup :]) for stage, values in stages.items()}
    return {**inside, "total": percentiles_ms(took.wall_ms["total"])}
