"""The champion in memory: bundle, item statistics, and what the answers fall back to.

Stage: serving. In: `ServiceSettings` and the moment of loading. Out: `ServedModel`, warm. Absent: requests, users'
states, and when to load another one.
"""

import gc
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from recsys.arrays import FloatArray, IntArray
from recsys.bundle import Bundle, load_bundle
from recsys.columns import CHAMPION
from recsys.errors import BundleError
from recsys.feature_store import FeatureStore
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import SECONDS_PER_DAY, ItemStats, day_of
from recsys.features.state import UserState, state_batch
from recsys.promotion_gate import NDCG, intervals
from recsys.ranking.compiled import compile_ranker
from recsys.recommender import Recommender, RequestContext
from recsys.registry import Registry, VersionInfo, model_name_for
from serving.items import Items
from serving.schemas import DatasetInfo, Item, ModelCard, ModelInfo
from serving.settings import ServiceSettings

WARM_UP = 5
REHEARSED_K = 10
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """version         in the registry
    stats           of the last day that ended before loading
    retrieval_only  the same path without the ranker: the first fallback
    cold_start_idx, cold_start_scores   (N,) all items, best first, for somebody unknown: the last fallback
    items          what answers say about each item
    """

    version: int
    bundle: Bundle
    stats: ItemStats
    retrieval_only: Recommender
    cold_start_idx: IntArray
    cold_start_scores: FloatArray
    items: Items

    @property
    def recommender(self) -> Recommender:
        return self.bundle.recommender

    @property
    def catalogue(self) -> Catalogue:
        return self.bundle.recommender.catalogue

    @classmethod
    def load(cls, settings: ServiceSettings, store: FeatureStore, now: int) -> "ServedModel":
        """Fetch the champion, check it, load it, warm it up. Raises RecsysError where there is none or it is broken."""
        registry = registry_of(settings)
        return cls.of_version(settings, store, registry, registry.look_up(CHAMPION), now)

    @classmethod
    def of_version(
        cls, settings: ServiceSettings, store: FeatureStore, registry: Registry, info: VersionInfo, now: int
    ) -> "ServedModel":
        """The same for a version of one's choice. Raises BundleError where it is of another data set than is served."""
        bundle = load_bundle(registry.download(info, to=settings.home.bundles), ranker_threads=1)
        check_dataset(bundle, settings.home.name)
        full = bundle.recommender
        if full.ranker is not None:
            bundle = replace(bundle, recommender=full.with_ranker(compile_ranker(full.ranker)))
        model = cls.build(info.version, bundle, stats_of(bundle.recommender.catalogue, store, now), now)
        facts = bundle.facts
        log.info("loaded version %d, %s, trained on %s", info.version, facts.bundle_id, facts.dataset.label)
        return model

    @classmethod
    def build(cls, version: int, bundle: Bundle, stats: ItemStats, now: int) -> "ServedModel":
        """From parts; also makes the cold-start list and the first answers, which are slow ones.

        Raises BundleError where the first answer is not one: no item, or a score that is no number."""
        single_threaded()
        full = bundle.recommender
        plain = full.with_ranker(None)
        stranger = state_batch(full.catalogue, [UserState(0)], [()], now)
        ordered = plain.recommend(stranger, RequestContext(stats), max(len(full.catalogue), 1))
        idx = full.catalogue.to_idx(ordered.item_ids[0])
        model = cls(version, bundle, stats, plain, idx[idx >= 0], ordered.scores[0, idx >= 0], Items(full.catalogue))
        ids = full.catalogue.item_ids[:3].tolist()
        somebody = UserState(0, tuple(ids), (4.0,) * len(ids), tuple(range(1, len(ids) + 1)), len(ids), len(ids))
        model.warm_up([(somebody, np.asarray(ids))] * WARM_UP, now)
        return model

    def warm_up(self, asked: Sequence[tuple[UserState, npt.ArrayLike]], now: int, pause_s: float = 0.0) -> None:
        """Answer these states, for nobody: what is slow the first time is slow here. `pause_s` after each lets those
        who are waiting for an answer go first. Raises BundleError where an answer is none."""
        for state, seen_ids in asked:
            moment = max(now, max(state.timestamps, default=0) + 1)
            states = state_batch(self.catalogue, [state], [seen_ids], moment)
            found = self.recommender.recommend(states, RequestContext(self.stats), REHEARSED_K)
            answered = found.item_ids[0] >= 0
            unseen = len(self.catalogue) - len(states.seen_idx[0])
            if (unseen > 0 and not answered.any()) or not np.isfinite(found.scores[0, answered]).all():
                name = self.bundle.facts.bundle_id
                raise BundleError(f"{name} gives no answer to a request that was answered before; train again")
            time.sleep(pause_s)

    def with_stats(self, stats: ItemStats, now: int) -> "ServedModel":
        """The same bundle on other statistics of items."""
        return self.build(self.version, self.bundle, stats, now)

    def item(self, item_idx: int) -> Item:
        catalogue = self.catalogue
        year = catalogue.years[item_idx]
        return Item(
            item_id=int(catalogue.item_ids[item_idx]),
            title=catalogue.titles[item_idx],
            year=None if np.isnan(year) else int(year),
            genres=catalogue.genres_of(item_idx),
        )

    def similar(self, item_idx: int, k: int) -> tuple[IntArray, FloatArray]:
        """Row numbers and cosines of the k most similar items, best first, never the item itself; ties by row."""
        vectors = self.recommender.unit_vectors  # (N, D)
        scores = vectors @ vectors[item_idx]  # (N,)
        scores[item_idx] = -np.inf
        best = np.argsort(-scores, kind="stable")[: min(k, len(scores) - 1)]
        return best, scores[best]

    def dataset(self) -> DatasetInfo:
        info = self.bundle.facts.dataset
        return DatasetInfo(name=info.name, synthetic=info.synthetic, label=info.label)

    def info(self) -> ModelInfo:
        return ModelInfo(version=self.version, bundle_id=self.bundle.facts.bundle_id)

    def card(self, counters: dict[str, int]) -> ModelCard:
        facts = self.bundle.facts
        ndcg = intervals(facts.metrics).get(NDCG)
        measured = facts.sibling_id or facts.bundle_id
        return ModelCard(
            version=self.version,
            bundle_id=facts.bundle_id,
            role=facts.role,
            dataset=self.dataset(),
            trained_through=facts.trained_through,
            trained_through_utc=datetime.fromtimestamp(facts.trained_through, UTC).isoformat(),
            created_utc=facts.created_utc,
            code_version=facts.code_version,
            metrics=dict(facts.metrics),
            metrics_of=measured if facts.metrics else None,
            ndcg_at_10={"mean": ndcg.mean, "low": ndcg.low, "high": ndcg.high} if ndcg else None,
            item_statistics_day=datetime.fromtimestamp(self.stats.day * SECONDS_PER_DAY, UTC).date().isoformat(),
            n_items=len(self.catalogue),
            retrievers=[retriever.name for retriever in self.recommender.retrievers],
            genres=list(self.catalogue.genre_names),
            counters=counters,
        )


def registry_of(settings: ServiceSettings) -> Registry:
    return Registry(settings.tracking_uri, settings.registry_folder, model_name_for(settings.home.name))


def check_dataset(bundle: Bundle, name: str) -> None:
    """Raises BundleError for a bundle of another data set: its users and items would be other people's."""
    if bundle.facts.dataset.name != name:
        found = bundle.facts.dataset.name
        raise BundleError(f"{bundle.facts.bundle_id} was trained on {found}, but {name} is served; promote another one")


def stats_of(catalogue: Catalogue, store: FeatureStore, now: int) -> ItemStats:
    """Statistics as of the last day that ended before `now`. Raises BundleError where the store knows none of the
    catalogue's items: it was made from other data."""
    last = store.last_snapshot_day()
    stats = store.item_stats_as_of(catalogue, min(int(day_of(now)), last))
    if last and not stats.n_ratings.any():
        raise BundleError("The feature store knows no item of this bundle; run `recsys train --only features --force`")
    return stats


def single_threaded() -> None:
    """One thread for each request: this is the one place that says so. FAISS and torch count their threads for each
    calling thread, so every thread that computes calls this once; BLAS and LightGBM's OpenMP are told by
    OMP_NUM_THREADS, which `recsys serve` sets before they are imported."""
    import faiss

    faiss.omp_set_num_threads(1)
    if "torch" in sys.modules:  # answers need no torch; where something else has loaded it, it shall behave
        sys.modules["torch"].set_num_threads(1)


def freeze_gc() -> None:
    """After a load: what is there stays, and the garbage collector need not walk it during requests.

    What was settled before is not walked either, so this costs as much as the newest model alone.
    """
    gc.collect()
    gc.freeze()


def unfreeze_gc() -> None:
    """Walk everything once (0.3 s): for a model that is gone but held by a cycle among what was settled."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
