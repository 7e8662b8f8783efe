"""The champion in memory: bundle, item statistics, and what the answers fall back to.

Stage: serving. In: `ServiceSettings` and the moment of loading. Out: `ServedModel`, warm. Absent: requests, users'
states, and when to load another one.
"""

import gc
import logging
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from recsys.bundle import Bundle, load_bundle
from recsys.columns import CHAMPION
from recsys.feature_store import FeatureStore
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import SECONDS_PER_DAY, ItemStats, day_of
from recsys.features.state import UserState, state_batch
from recsys.gate import NDCG, intervals
from recsys.recommender import Context, Recommender
from recsys.registry import Registry, model_name_for
from serving.schemas import DatasetInfo, ModelCard, ModelInfo, Movie
from serving.settings import ServiceSettings

WARM_UP = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """version         in the registry
    stats           of the last day that ended before loading
    retrieval_only  the same path without the ranker: the first fallback
    stranger_idx, stranger_scores   (N,) all movies, best first, for somebody unknown: the last fallback
    """

    version: int
    bundle: Bundle
    stats: ItemStats
    retrieval_only: Recommender
    stranger_idx: npt.NDArray[np.int64]
    stranger_scores: npt.NDArray[np.float32]

    @property
    def recommender(self) -> Recommender:
        return self.bundle.recommender

    @property
    def catalogue(self) -> Catalogue:
        return self.bundle.recommender.catalogue

    @classmethod
    def load(cls, settings: ServiceSettings, store: FeatureStore, now: int) -> "ServedModel":
        """Fetch the champion, check it, load it, warm it up. Raises RecsysError where there is none or it is broken."""
        registry = Registry(settings.tracking_uri, settings.registry_folder, model_name_for(settings.home.name))
        version = registry.resolve(CHAMPION).version
        folder = registry.download(version, to=settings.home.bundles)
        bundle = load_bundle(folder, ranker_threads=1)
        day = min(int(day_of(now)), store.last_snapshot_day())
        model = cls.build(version, bundle, store.item_stats_as_of(bundle.recommender.catalogue, day), now)
        log.info("serving version %d, %s, trained on %s", version, bundle.facts.bundle_id, bundle.facts.dataset.label)
        return model

    @classmethod
    def build(cls, version: int, bundle: Bundle, stats: ItemStats, now: int) -> "ServedModel":
        """From parts; also makes the cold-start list and the first answers, which are slow ones."""
        single_threaded()
        full = bundle.recommender
        plain = Recommender(full.catalogue, full.sources, None, full.settings)
        stranger = state_batch(full.catalogue, [UserState(0)], [()], now)
        ordered = plain.recommend(stranger, Context(stats), max(len(full.catalogue), 1))
        idx = full.catalogue.to_idx(ordered.item_ids[0])
        model = cls(version, bundle, stats, plain, idx[idx >= 0], ordered.scores[0, idx >= 0])
        ids = full.catalogue.item_ids[:3].tolist()
        somebody = UserState(0, tuple(ids), (4.0,) * len(ids), tuple(range(1, len(ids) + 1)), len(ids), len(ids))
        for _ in range(WARM_UP):
            full.recommend(state_batch(full.catalogue, [somebody], [ids], now), Context(stats), 10)
        return model

    def movie(self, item_idx: int) -> Movie:
        catalogue = self.catalogue
        year = catalogue.years[item_idx]
        return Movie(
            movie_id=int(catalogue.item_ids[item_idx]),
            title=catalogue.titles[item_idx],
            year=None if np.isnan(year) else int(year),
            genres=catalogue.genres_of(item_idx),
        )

    def similar(self, item_idx: int, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Row numbers and cosines of the k most similar movies, best first, never the movie itself; ties by row."""
        vectors = self.recommender.unit_vectors  # (N, D)
        scores = vectors @ vectors[item_idx]  # (N,)
        scores[item_idx] = -np.inf
        best = np.argsort(-scores, kind="stable")[: min(k, len(scores) - 1)]
        return best, scores[best]

    def dataset(self) -> DatasetInfo:
        source = self.bundle.facts.dataset
        return DatasetInfo(name=source.name, synthetic=source.synthetic, label=source.label)

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
            n_movies=len(self.catalogue),
            sources=[source.name for source in self.recommender.sources],
            genres=list(self.catalogue.genre_names),
            counters=counters,
        )


def single_threaded() -> None:
    """One thread for each request. FAISS counts its threads per calling thread, so each one has to be told."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def settle() -> None:
    """After start: what is loaded stays; keep the garbage collector from walking it during requests."""
    gc.collect()
    gc.freeze()
