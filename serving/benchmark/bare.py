"""What the libraries alone cost for the same answer: the denominator of the overhead (docs/latency.md has the list).

Not in the sum is the product's own work: masks, selection of the best, merging, features, order, probabilities.
"""

from collections.abc import Callable
from pathlib import Path

import faiss
import lightgbm as lgb
import numpy as np
import orjson
import scipy.sparse as sp
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from recsys.arrays import FloatArray
from recsys.atomic_io import read_json
from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, TWO_TOWER
from recsys.features.state import StateBatch
from recsys.recommender import Recommender
from recsys.retrieval.index import INDEX_FILES
from recsys.retrieval.item_tables import MAX_STEPS
from recsys.retrieval.retriever import recency_weights
from recsys.retrieval.tower_inputs import TowerShape
from recsys.retrieval.two_tower import TwoTower, encode_states

Call = Callable[[], object]


def load_tower(folder: Path, recommender: Recommender) -> TwoTower:
    """The torch model of the bundle in `folder`, in eval mode, on the CPU."""
    place = folder / "retrievers" / TWO_TOWER
    stored = read_json(place / "towers.json")
    tower = TwoTower(TowerShape(**{**stored, "profile_sizes": tuple(stored["profile_sizes"])}), recommender.catalogue)
    tower.load_state_dict(load_tensors(place / "towers.safetensors"))
    return tower.eval()


class BareLibraries:
    """The libraries over the files of one bundle. A retriever that it does not hold has no call."""

    def __init__(self, folder: Path, recommender: Recommender) -> None:
        self._booster = lgb.Booster(model_file=str(folder / "ranker.txt"))
        self._fetch, retrievers = recommender.settings.fetch, folder / "retrievers"
        self._stored = {
            name: load_file(retrievers / name / f"{name}.safetensors")
            for name in (EASE, ITEM_KNN, COVISITATION, IALS)
            if (retrievers / name).is_dir()
        }
        self._tower = None
        if (retrievers / TWO_TOWER).is_dir():
            self._tower = load_tower(folder, recommender)
            self._index = faiss.read_index(str(next((retrievers / TWO_TOWER).glob(INDEX_FILES))))

    def calls(self, read: Call, states: StateBatch, features: FloatArray, answer: object) -> dict[str, Call]:
        """What to call for this user, by name. features (rank, F): what the ranker saw; answer: what is sent."""
        calls: dict[str, Call] = {"feast": read}
        if (tower := self._tower) is not None:
            user = encode_states(tower, states)
            depth = min(self._fetch + len(states.seen_idx[0]), self._index.ntotal)
            calls["tower"] = lambda: encode_states(tower, states)
            calls["index"] = lambda: self._index.search(user, depth)
        for name in self._stored:
            calls[name] = self._product(name, states)
        calls["lightgbm"] = lambda: self._booster.predict(features, raw_score=True, num_threads=1)
        calls["orjson"] = lambda: orjson.dumps(answer)
        return calls

    def _product(self, name: str, states: StateBatch) -> Call:
        """Of the history with what is stored of this retriever."""
        stored = self._stored[name]
        if name == COVISITATION:
            decay = float(stored["history_decay"][0])
            weights = (decay ** np.arange(MAX_STEPS - 1, -1, -1)).astype(np.float32)
        else:
            weights = recency_weights(states, float((stored["settings"] if name == IALS else stored["power"])[-1]))[0]
        item_idx = states.item_idx[0, -len(weights) :]
        item_idx, weights = item_idx[item_idx >= 0], weights[item_idx >= 0]
        if name == IALS:
            factors, (regularisation, alpha, _) = stored["factors"], stored["settings"].tolist()
            gram = factors.T @ factors + regularisation * np.eye(factors.shape[1], dtype=np.float32)
            past = factors[item_idx]  # (T, D)
            scaled, summed = past * (alpha * weights)[:, None], ((1 + alpha) * weights).astype(np.float32)
            return lambda: factors @ np.linalg.solve(gram + scaled.T @ past, summed @ past)
        if name == EASE:  # its rows are the items of its head
            table, known = stored["weights"], np.isin(item_idx, stored["head"])
            item_idx, weights = np.searchsorted(stored["head"], item_idx[known]), weights[known]
        else:
            n = len(stored["indptr"]) - 1
            table = sp.csr_matrix((stored["data"], stored["indices"], stored["indptr"]), shape=(n, n))
        history = sp.csr_matrix((weights, item_idx, np.array([0, len(item_idx)])), shape=(1, table.shape[0]))
        return lambda: history @ table
