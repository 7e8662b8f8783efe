"""The one path from a user's state to an ordered list: retrieve, filter, rank, order.

Replay evaluation, batch recommendation, the service and the benchmark all call `Recommender.recommend`, for one user or
for many, so what was measured is what is served.

Shapes: B users, N items, K candidates, k answers, S retrievers, F features.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from recsys.arrays import BoolArray, FloatArray, IntArray
from recsys.errors import ConfigError
from recsys.features.candidate import CandidateSignals, candidate_features, feature_names
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import ItemStats
from recsys.features.state import StateBatch
from recsys.filters import Filters
from recsys.ranking.calibration import Probabilities
from recsys.ranking.diversity import check_diversity, most_diverse, pool_size, unit_genres
from recsys.ranking.ranker import Ranker
from recsys.retrieval.merge import Candidates, ask, hidden_idx, merge
from recsys.retrieval.retriever import HasItemVectors, Retriever, RetrieverScores, ScoresTransitions


@dataclass(frozen=True)
class RecommenderSettings:
    """fetch: items asked of each retriever; keep: merged candidates kept; rank: how many of them the ranker reorders;
    rrf_weights: weight of each retriever in the merged order (1.0 where not named)."""

    fetch: int = 300
    keep: int = 500
    rank: int = 300
    rrf_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= self.keep or self.fetch < 1:
            raise ConfigError(f"recommender: need 1 <= rank <= keep and fetch >= 1, got {self}")


@dataclass(frozen=True)
class RequestContext:
    """stats: of the last day that ended before `now`. budget_ms: where retrieval takes longer, features and ranking are
    skipped; None for no limit."""

    stats: ItemStats
    budget_ms: float | None = None


@dataclass(frozen=True)
class Recommendations:
    """item_ids, scores  (B, k) best first; -1 and -inf where the catalogue has no more unseen items. A score orders
                     one answer; across answers it means nothing. A re-rank for diversity keeps the ranker's scores.
    position         (B, k) place of each answer among the candidates, -1 where there is none
    features         (B, rank, F) what the ranker saw, or None where it did not run
    degraded         what was skipped, empty in a full answer: "ranking"
    timings_ms       milliseconds a stage; the probabilities are part of "ordering"
    watch_probability, like_probability   (B, k) float32 (`recsys.ranking.calibration`); NaN where the ranker did not
                     see it, did not run, or has no probabilities
    """

    item_ids: IntArray
    scores: FloatArray
    candidates: Candidates
    position: IntArray
    features: FloatArray | None
    degraded: tuple[str, ...]
    timings_ms: dict[str, float]
    watch_probability: FloatArray
    like_probability: FloatArray


class Recommender:
    """Retrievers, ranker and catalogue of one bundle."""

    def __init__(
        self,
        catalogue: Catalogue,
        retrievers: Sequence[Retriever],
        ranker: Ranker | None,
        settings: RecommenderSettings,
        probabilities: Probabilities | None = None,
    ) -> None:
        """`ranker` None gives the merged retrieval order. Without a retriever that has item vectors the similarity
        features are 0, without one that scores transitions `covisitation_last`. Raises ConfigError where ranker or
        probabilities were trained on other features than these retrievers give."""
        self.catalogue = catalogue
        self.retrievers = tuple(retrievers)
        if not retrievers:
            raise ConfigError("a recommender needs at least one retriever")
        self.settings = settings
        self.feature_names = feature_names([s.name for s in retrievers])
        self._check_features("ranker was", ranker)
        self._check_features("probabilities were", probabilities)
        self.ranker = ranker
        self.probabilities = probabilities
        vectors = next((r.item_vectors for r in retrievers if isinstance(r, HasItemVectors)), None)
        self._has_vectors = vectors is not None
        if vectors is None:
            vectors = np.zeros((len(catalogue), 1), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.unit_vectors: FloatArray = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
        self._transitions = next((r for r in retrievers if isinstance(r, ScoresTransitions)), None)
        self._unit_genres = unit_genres(catalogue.genres)

    def with_ranker(self, ranker: Ranker | None) -> "Recommender":
        """Another recommender that differs in its ranker alone. Raises ConfigError for a ranker of other features."""
        self._check_features("ranker was", ranker)
        other = copy.copy(self)
        other.ranker = ranker
        return other

    def _check_features(self, name: str, fitted: Ranker | Probabilities | None) -> None:
        if fitted is not None and fitted.feature_names != self.feature_names:
            raise ConfigError(f"the {name} trained on other features than this code computes; train again")

    def recommend(
        self,
        states: StateBatch,
        context: RequestContext,
        k: int,
        filters: Filters | None = None,
        diversity: float = 0.0,
        answers: Mapping[str, RetrieverScores] | None = None,
    ) -> Recommendations:
        """The k best unseen items for each state. k is 1 or more; filters apply before ranking.

        `diversity` from 0, the ranker's order, to 1 trades score for variety (`recsys.ranking.diversity`). `answers`
        are what `ask` has already given for these states without filters.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, got {k}")
        check_diversity(diversity)
        started = marked = time.perf_counter()
        timings_ms: dict[str, float] = {}

        def mark(stage: str) -> None:
            nonlocal marked
            now = time.perf_counter()
            timings_ms[stage], marked = (now - marked) * 1e3, now

        allowed = (filters or Filters()).allowed(self.catalogue, context.stats)
        candidates = self.retrieve(states, keep=max(k, self.settings.keep), allowed=allowed, answers=answers)
        mark("retrieval")
        features: FloatArray | None = None
        degraded: tuple[str, ...] = ()
        scores = candidates.rrf_score
        if self.ranker is not None:
            if context.budget_ms is not None and (time.perf_counter() - started) * 1e3 > context.budget_ms:
                degraded = ("ranking",)
            else:
                features = self.features(states, candidates, context.stats)
                mark("features")
                scores = self.ranked_scores(candidates, features, self.ranker)
                mark("ranking")
        if diversity > 0:
            item_idx, ordered, position = self._diverse_order(candidates, scores, k, diversity)
        else:
            item_idx, ordered, position = order(candidates, scores, k)
        watch, like = self._probabilities(scores, features, position)
        mark("ordering")
        item_ids = self.catalogue.to_ids(item_idx)
        return Recommendations(item_ids, ordered, candidates, position, features, degraded, timings_ms, watch, like)

    def with_position(self, made: Recommendations, position: IntArray) -> Recommendations:
        """The same answer with other candidates in its slots, `position` (B, k)."""
        scores = made.candidates.rrf_score
        if made.features is not None and self.ranker is not None:
            scores = self.ranked_scores(made.candidates, made.features, self.ranker)
        watch, like = self._probabilities(scores, made.features, position)
        item_idx = np.take_along_axis(made.candidates.item_idx, position, axis=1)
        return replace(
            made,
            item_ids=self.catalogue.to_ids(item_idx),
            scores=np.take_along_axis(scores, position, axis=1),
            position=position,
            watch_probability=watch,
            like_probability=like,
        )

    def retrieve(
        self,
        states: StateBatch,
        *,
        keep: int | None = None,
        allowed: BoolArray | None = None,
        answers: Mapping[str, RetrieverScores] | None = None,
    ) -> Candidates:
        """The merged candidates of all retrievers. `allowed` (N,) restricts the catalogue."""
        if allowed is not None:
            states = replace(states, seen_idx=hidden_idx(states.seen_idx, allowed))
        return merge(
            ask(self.retrievers, states) if answers is None else answers,
            self.settings.rrf_weights,
            states.seen_idx,
            len(self.catalogue),
            fetch=self.settings.fetch,
            keep=keep or self.settings.keep,
        )

    def features(self, states: StateBatch, candidates: Candidates, stats: ItemStats) -> FloatArray:
        """(B, rank, F) features of the candidates that the ranker reorders."""
        depth = min(self.settings.rank, candidates.item_idx.shape[1])
        item_idx = candidates.item_idx[:, :depth]
        last = np.zeros(item_idx.shape, dtype=np.float32)
        if self._transitions is not None:
            last = self._transitions.after(states.item_idx[:, -1], item_idx)
        signals = CandidateSignals(
            candidates.retriever_names,
            item_idx,
            np.where(item_idx >= 0, candidates.rrf_score[:, :depth], np.float32(0)),
            candidates.retriever_scores[:, :depth],
            candidates.retriever_ranks[:, :depth],
            last,
        )
        features = candidate_features(states, signals, stats, self.catalogue, self.unit_vectors)
        if not self._has_vectors:
            features[:, :, [name.startswith("similarity_") for name in self.feature_names]] = 0.0
        return features

    def ranked_scores(self, candidates: Candidates, features: FloatArray, ranker: Ranker) -> FloatArray:
        """(B, K) scores: the ranker's for the candidates it saw; the rest keep the retrieval order below them."""
        b, depth, f = features.shape
        present = candidates.item_idx >= 0
        ranked = ranker.score(features.reshape(b * depth, f)).reshape(b, depth)
        lowest = np.where(present[:, :depth], ranked, np.inf).min(axis=1, keepdims=True, initial=np.inf)
        scores = np.empty(present.shape, dtype=np.float32)
        scores[:, :depth] = ranked
        # one below the last ranked one, two below, and so on
        scores[:, depth:] = np.where(np.isfinite(lowest), lowest, 0.0)
        scores[:, depth:] -= np.arange(1, present.shape[1] - depth + 1, dtype=np.float32)
        np.copyto(scores, np.float32(-np.inf), where=~present)
        return scores

    def _diverse_order(
        self, candidates: Candidates, scores: FloatArray, k: int, diversity: float
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """As `order`, the best of what the ranker saw re-ranked; where k is larger, the others follow as they were."""
        pool = min(pool_size(k), self.settings.rank)
        item_idx, ordered, position = order(candidates, scores, max(k, pool))
        first = most_diverse(ordered[:, :pool], self._unit_genres[item_idx[:, :pool]], k, diversity)
        rest = np.arange(first.shape[1], min(k, item_idx.shape[1]))
        columns = np.concatenate([first, np.broadcast_to(rest, (len(first), len(rest)))], axis=1)
        taken = (np.take_along_axis(values, columns, axis=1) for values in (item_idx, ordered, position))
        return tuple(taken)  # type: ignore[return-value]

    def _probabilities(
        self, scores: FloatArray, features: FloatArray | None, position: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """P(watch) and P(like) of the answers at these places, (B, k) each."""
        if self.probabilities is None or features is None:
            unknown = np.full(position.shape, np.nan, dtype=np.float32)
            return unknown, unknown
        ranked = scores[:, : features.shape[1]]
        return self.probabilities.watch(ranked, position), self.probabilities.like(features, position)


def order(candidates: Candidates, scores: FloatArray, k: int) -> tuple[IntArray, FloatArray, IntArray]:
    """(B, k) row numbers, scores and places among the candidates, best first; ties keep the merged order."""
    position = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    item_idx = np.take_along_axis(candidates.item_idx, position, axis=1)
    ordered = np.take_along_axis(scores, position, axis=1)
    missing = item_idx < 0
    return item_idx, np.where(missing, np.float32(-np.inf), ordered), np.where(missing, -1, position)
