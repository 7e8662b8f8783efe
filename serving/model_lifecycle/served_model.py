"""The champion in memory: bundle, item statistics, and what the answers fall back to. Made whole, never changed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from recsys.arrays import FloatArray, IntArray
from recsys.bundle import Bundle, load_bundle, try_bundle
from recsys.errors import BundleError, StoreError
from recsys.events import DataClock
from recsys.feature_store import FeatureStore
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import HALF_LIVES_DAYS, SECONDS_PER_DAY, ItemStats, day_of
from recsys.features.state import Event, UserState, fold, state_batch
from recsys.promotion_gate import NDCG, intervals
from recsys.recommender import Recommender, RequestContext
from recsys.registry import Registry, VersionInfo, model_name_for
from recsys.threads import single_threaded
from serving.recommending.item_search import ItemSearch
from serving.settings import ServiceSettings

WARM_UPS, WARM_UP_K = 5, 10
CLOSE_SHARE: Final = 0.95  # similar: closer to each other than this share of all pairs of items
SAMPLED_ITEMS = 512  # whose pairs stand for all
POPULAR_SHARE: Final = 0.05  # popular: in this share of the catalogue, by ratings of the last weeks
MONTH: Final = HALF_LIVES_DAYS.index(30)
Body = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """stats           of the last day that ended before loading
    retrieval_only  the same path without the ranker: the first fallback
    cold_start_idx, cold_start_scores   (N,) all items, best first, for somebody unknown: the last fallback
    facts           N dicts, what answers say of each item; an answer copies them, and must not change them
    close, popular  from which cosine on two items are similar, and from how many recent ratings on one is popular
    """

    version: int
    bundle: Bundle
    stats: ItemStats
    retrieval_only: Recommender
    cold_start_idx: IntArray
    cold_start_scores: FloatArray
    facts: Sequence[Body]
    search: ItemSearch
    close: float
    popular: float

    @property
    def recommender(self) -> Recommender:
        return self.bundle.recommender

    @property
    def catalogue(self) -> Catalogue:
        return self.bundle.recommender.catalogue

    @classmethod
    def load(
        cls, settings: ServiceSettings, store: FeatureStore, registry: Registry, info: VersionInfo, now: int
    ) -> "ServedModel":
        """Fetch a version, try it in a child process, load it, warm it up. Raises RecsysError where it is broken, or of
        another data set than is served."""
        folder = registry.download(info, to=settings.home.bundles)
        if info.bundle_sha256 != settings.tried_bundle:
            try_bundle(folder)  # in a child process: LightGBM ends the one that reads some damaged files
        bundle = load_bundle(folder)
        name = bundle.facts.dataset.name
        if name != settings.home.name:
            text = f"{bundle.facts.bundle_id} was trained on {name}, but {settings.home.name} is served"
            raise BundleError(f"{text}; promote another one")
        now = data_clock(settings, bundle, now).to_data(now)
        model = cls.build(info.version, bundle, item_stats(bundle.recommender.catalogue, store, now), now)
        log.info("loaded version %d, %s", info.version, bundle.facts.bundle_id)
        return model

    @classmethod
    def build(cls, version: int, bundle: Bundle, stats: ItemStats, now: int) -> "ServedModel":
        """Also makes the cold-start list and the first answers, which are slow ones. Raises BundleError where a score
        is no number."""
        single_threaded()
        full = bundle.recommender
        plain = full.with_ranker(None)
        nobody = state_batch(full.catalogue, [UserState(0)], now)
        ordered = plain.recommend(nobody, RequestContext(stats), max(len(full.catalogue), 1))
        idx = full.catalogue.to_idx(ordered.item_ids[0])
        unit = full.unit_vectors
        sample = unit[np.linspace(0, len(unit) - 1, min(SAMPLED_ITEMS, len(unit))).astype(int)]
        pairs = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
        recent = stats.decayed[:, MONTH]
        model = cls(
            version,
            bundle,
            stats,
            plain,
            idx[idx >= 0],
            ordered.scores[0, idx >= 0],
            item_facts(full.catalogue),
            ItemSearch(full.catalogue),
            float(np.quantile(pairs, CLOSE_SHARE)) if len(pairs) else 1.0,
            float(np.quantile(recent, 1 - POPULAR_SHARE)) if len(recent) else 0.0,
        )
        model.warm_up(now)
        return model

    def warm_up(self, now: int) -> None:
        ids = self.catalogue.item_ids
        for start in range(WARM_UPS):
            ratings = [Event(item_id, 4.0, now - 60) for item_id in ids[3 * start : 3 * start + 3].tolist()]
            states = state_batch(self.catalogue, [fold(UserState(0), ratings)], now)
            found = self.recommender.recommend(states, RequestContext(self.stats), WARM_UP_K)
            if not np.isfinite(found.scores[found.item_ids >= 0]).all():
                raise BundleError(f"{self.bundle.facts.bundle_id} gives scores that are no numbers; train again")

    def similar(self, item_idx: int, k: int) -> tuple[IntArray, FloatArray]:
        """Row numbers and cosines of the k most similar items, best first, never the item itself; ties by row."""
        vectors = self.recommender.unit_vectors  # (N, D)
        scores = vectors @ vectors[item_idx]  # (N,)
        scores[item_idx] = -np.inf
        best = np.argsort(-scores, kind="stable")[: min(k, len(scores) - 1)]
        return best, scores[best]

    @property
    def dataset(self) -> Body:
        info = self.bundle.facts.dataset
        return {"name": info.name, "synthetic": info.synthetic, "label": info.label}

    @property
    def name(self) -> Body:
        return {"version": self.version, "bundle_id": self.bundle.facts.bundle_id}

    def card(self) -> Body:
        facts = self.bundle.facts
        ndcg = intervals(facts.metrics).get(NDCG)
        return {
            **self.name,
            "role": facts.role,
            "dataset": self.dataset,
            "trained_through": facts.trained_through,
            "trained_through_utc": datetime.fromtimestamp(facts.trained_through, UTC).isoformat(),
            "created_utc": facts.created_utc,
            "code_version": facts.code_version,
            "metrics": dict(facts.metrics),
            "metrics_of": (facts.sibling_id or facts.bundle_id) if facts.metrics else None,
            "ndcg_at_10": {"mean": ndcg.mean, "low": ndcg.low, "high": ndcg.high} if ndcg else None,
            "item_statistics_day": datetime.fromtimestamp(self.stats.day * SECONDS_PER_DAY, UTC).date().isoformat(),
            "n_items": len(self.catalogue),
            "retrievers": [retriever.name for retriever in self.recommender.retrievers],
            "genres": list(self.catalogue.genre_names),
        }


def item_facts(catalogue: Catalogue) -> list[Body]:
    """What answers say of each item: item_id, title, year, genres."""
    names = catalogue.genre_names
    genres: list[list[str]] = [[] for _ in range(len(catalogue))]
    for row, column in zip(*(axis.tolist() for axis in np.nonzero(catalogue.genres)), strict=True):
        genres[row].append(names[column])
    return [
        {"item_id": item_id, "title": title, "year": None if np.isnan(year) else int(year), "genres": own}
        for item_id, title, year, own in zip(
            catalogue.item_ids.tolist(), catalogue.titles, catalogue.years.tolist(), genres, strict=True
        )
    ]


def registry_of(settings: ServiceSettings) -> Registry:
    return Registry(settings.tracking_uri, settings.registry_folder, model_name_for(settings.home.name))


def data_clock(settings: ServiceSettings, bundle: Bundle, now: float) -> DataClock:
    """Of the data that a bundle learnt from. An event table that cannot be read passes for an empty one."""
    last_recorded = bundle.facts.dataset.last_event_at
    try:
        return settings.events.data_clock(last_recorded, now)
    except StoreError as error:
        log.warning("when the first event came is not known: %s", error)
        return DataClock.following(last_recorded, now)


def item_stats(catalogue: Catalogue, store: FeatureStore, now: int) -> ItemStats:
    """Statistics as of the last day that ended before `now`. Raises BundleError where the store knows none of the
    catalogue's items: it was made from other data."""
    last = store.last_snapshot_day()
    stats = store.item_stats_as_of(catalogue, min(int(day_of(now)), last))
    if last and not stats.n_ratings.any():
        raise BundleError("The feature store knows no item of this bundle; run `recsys train --only features --force`")
    return stats
