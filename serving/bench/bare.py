"""What the libraries alone cost for the same answer: the denominator of the overhead.

Stage: serving (benchmark). In: a bundle's files and one user's state. Out: calls by name, each one library call (or
the few that make one product), everything they need prepared beforehand. Absent: merging, features, ordering, masks;
those are the product's own work, which the overhead is there to show.

In the sum (`IN_SUM`), for one user and the candidates that the ranker sees:

    feast        one `get_online_features(...).to_dict()` of the user's row
    tower        the eager torch forward pass of the user tower over the user's own history, nothing padded
    index        one FAISS search for `fetch` items and as many more as were seen (the product passes over those
                 with a selector instead, which takes a little longer for few and less for many)
    ease, item_knn, covisitation   one product of a history (1, N), sparse, with the stored weights, by SciPy
    ials         the normal equations, `numpy.linalg.solve`, and one matrix-vector product for the scores
    lightgbm     `Booster.predict` of the (rank, F) matrix
    orjson       the answer as bytes

Beside the sum (`BESIDE`): `selection`, one `numpy.argpartition` for each retriever that scores every item, without
which no list comes out of a product; `own_read`, `own_tower` and `own_ranker`, what the product runs in place of the
call above, torch and LightGBM.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import lightgbm as lgb
import numpy as np
import orjson
import scipy.sparse as sp
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from recsys.arrays import FloatArray, IntArray
from recsys.atomic_io import read_json
from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, RETRIEVAL_SERVICE, TWO_TOWER
from recsys.feature_store import FeatureStore
from recsys.features.state import StateBatch
from recsys.recommender import Recommender
from recsys.retrieval.covisitation import MAX_STEPS
from recsys.retrieval.retriever import recency_weights
from recsys.retrieval.tower_inputs import TowerShape, tokens_of
from recsys.retrieval.two_tower import TwoTower
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever

Call = Callable[[], object]

IN_SUM = ("feast", "tower", "index", EASE, ITEM_KNN, COVISITATION, IALS, "lightgbm", "orjson")
BESIDE = ("selection", "own_read", "own_tower", "own_ranker")


@dataclass(frozen=True)
class Asked:
    """One user's answer, as the bare calls need it. `rows` (rank, F): what the ranker saw; `answer`: what is sent."""

    user_id: int
    states: StateBatch
    rows: FloatArray
    answer: dict[str, Any]


class BareLibraries:
    """The libraries over the files of one bundle. Retrievers that it does not hold have no call."""

    def __init__(self, folder: Path, recommender: Recommender, store: FeatureStore) -> None:
        self._recommender, self._store = recommender, store
        self._booster = lgb.Booster(model_file=str(folder / "ranker.txt"))
        retrievers = folder / "retrievers"
        self._tables: dict[str, sp.csr_matrix] = {}
        for name in (ITEM_KNN, COVISITATION):
            if (path := retrievers / name / f"{name}.safetensors").exists():
                stored = load_file(path)
                n = len(stored["indptr"]) - 1
                self._tables[name] = sp.csr_matrix((stored["data"], stored["indices"], stored["indptr"]), shape=(n, n))
                self._tables[name].has_sorted_indices = True
        self._stored = {
            name: load_file(retrievers / name / f"{name}.safetensors")
            for name in (EASE, IALS, ITEM_KNN, COVISITATION)
            if (retrievers / name).is_dir()
        }
        self._tower: TwoTower | None = None
        if (retrievers / TWO_TOWER).is_dir():
            shape = read_json(retrievers / TWO_TOWER / "towers.json")
            self._tower = TwoTower(
                TowerShape(**{**shape, "profile_sizes": tuple(shape["profile_sizes"])}), recommender.catalogue
            ).eval()
            self._tower.load_state_dict(load_tensors(retrievers / TWO_TOWER / "towers.safetensors"))
            (path,) = (retrievers / TWO_TOWER).glob("index.*.faiss")
            self._index = faiss.read_index(str(path))
        self._own_tower = next((s for s in recommender.retrievers if isinstance(s, TwoTowerRetriever)), None)

    def calls(self, asked: Asked) -> dict[str, Call]:
        """What to call for this user, by name; names of IN_SUM and BESIDE that this bundle has a use for."""
        store, ranker = self._store, self._recommender.ranker
        store.online_state(asked.user_id, at_once=True)  # opens the store
        feast_store = store._registered()
        service = feast_store.get_feature_service(RETRIEVAL_SERVICE)
        row = [{"user_id": asked.user_id}]
        found: dict[str, Call] = {
            "feast": lambda: feast_store.get_online_features(features=service, entity_rows=row).to_dict(),
            "lightgbm": lambda: self._booster.predict(asked.rows, raw_score=True, num_threads=1),
            "orjson": lambda: orjson.dumps(asked.answer),
            "own_read": lambda: store.online_state(asked.user_id, at_once=True),
        }
        if self._tower is not None:
            found |= self._tower_calls(asked)
        for name in (EASE, ITEM_KNN, COVISITATION, IALS):
            if name in self._stored:
                found[name] = getattr(self, f"_{name}")(asked.states)
        found["selection"] = self._selection()
        if ranker is not None:
            found["own_ranker"] = lambda: ranker.score(asked.rows)
        if self._own_tower is not None:
            own = self._own_tower
            found["own_tower"] = lambda: own.encode(asked.states)
        return found

    def _tower_calls(self, asked: Asked) -> dict[str, Call]:
        tower, index, states = self._tower, self._index, asked.states
        assert tower is not None
        tokens = tokens_of(states, 0, tower.shape.max_length)
        inputs = tuple(
            torch.from_numpy(np.ascontiguousarray(values))[None]
            for values in (tokens.item_idx, tokens.ratings, tokens.gaps, tokens.profile)
        )
        query_gap = torch.tensor([tokens.query_gap])

        def forward() -> torch.Tensor:
            with torch.inference_mode():
                return tower.query(tower.encode(*inputs)[:, -1], query_gap)

        user = forward().numpy().copy()
        depth = min(self._recommender.settings.fetch + len(states.seen_idx[0]), index.ntotal)
        return {"tower": forward, "index": lambda: index.search(user, depth)}

    def _history(self, states: StateBatch, weights: FloatArray) -> tuple[IntArray, FloatArray]:
        """Row numbers and weights of the events that there are."""
        item_idx = states.item_idx[0, -weights.shape[1] :]
        return item_idx[item_idx >= 0], weights[0][item_idx >= 0]

    def _sparse(self, item_idx: IntArray, weights: FloatArray, n: int) -> sp.csr_matrix:
        return sp.csr_matrix((weights, item_idx, np.array([0, len(item_idx)])), shape=(1, n))

    def _ease(self, states: StateBatch) -> Call:
        stored = self._stored[EASE]
        head, weights = stored["head"], stored["weights"]
        item_idx, recency = self._history(states, recency_weights(states, float(stored["power"][0])))
        known = np.isin(item_idx, head)
        history = self._sparse(np.searchsorted(head, item_idx[known]), recency[known], len(head))
        return lambda: history @ weights

    def _item_knn(self, states: StateBatch) -> Call:
        power = float(self._stored[ITEM_KNN]["power"][0])
        return self._neighbours(ITEM_KNN, states, recency_weights(states, power))

    def _covisitation(self, states: StateBatch) -> Call:
        decay = float(self._stored[COVISITATION]["history_decay"][0])
        weights = (decay ** np.arange(MAX_STEPS - 1, -1, -1)).astype(np.float32)[None, :]
        return self._neighbours(COVISITATION, states, weights)

    def _neighbours(self, name: str, states: StateBatch, weights: FloatArray) -> Call:
        table = self._tables[name]
        history = self._sparse(*self._history(states, weights), table.shape[0])
        return lambda: history @ table

    def _ials(self, states: StateBatch) -> Call:
        stored = self._stored[IALS]
        factors = stored["factors"]
        regularisation, alpha, power = stored["settings"].tolist()
        gram = factors.T @ factors + regularisation * np.eye(factors.shape[1], dtype=np.float32)
        item_idx, recency = self._history(states, recency_weights(states, power))
        past = factors[item_idx]
        scaled, summed = past * (alpha * recency)[:, None], ((1 + alpha) * recency).astype(np.float32)

        def solve() -> FloatArray:
            return np.asarray(factors @ np.linalg.solve(gram + scaled.T @ past, summed @ past))

        return solve

    def _selection(self) -> Call:
        n = len(self._recommender.catalogue)
        depth = min(self._recommender.settings.fetch, n) - 1
        scores = np.random.default_rng(0).random((1, n), dtype=np.float32)
        dense = [name for name in self._stored if name != TWO_TOWER]
        return lambda: [np.argpartition(scores, depth, axis=1) for _ in dense]
