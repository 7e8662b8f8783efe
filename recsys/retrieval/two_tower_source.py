"""The two-tower model and its FAISS index as a candidate source.

Stage: retrieval; both tracks. In: a trained `TwoTower`. Out: a `Source` that encodes states, searches the index and
scores any movie by inner product. Absent: training.

Shapes: B users, N movies, K candidates, D dimensions.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from recsys.artefacts import read_json, write_json
from recsys.columns import TWO_TOWER
from recsys.errors import BundleError
from recsys.features.catalogue import Catalogue
from recsys.features.state import StateBatch
from recsys.retrieval.index import Kind, VectorIndex
from recsys.retrieval.source import Idx, Scores
from recsys.retrieval.two_tower import TowerShape, TwoTower, encode_states


class VectorAnswer:
    """User vectors against the index."""

    def __init__(self, users: npt.NDArray[np.float32], source: "TwoTowerSource", seen_idx: "list[Idx]") -> None:
        self._users = users
        self._source = source
        self._seen_idx = seen_idx

    def top(self, k: int) -> tuple[Idx, Scores]:
        """The index is asked for k and as many more as the user has seen, then what was seen is dropped."""
        size, n = len(self._users), len(self._source.item_vectors)
        most_seen = max((len(s) for s in self._seen_idx), default=0)
        found, scores = self._source.index.search(self._users, min(k + most_seen, n))
        out_idx = np.full((size, k), -1, dtype=np.int64)
        out = np.full((size, k), -np.inf, dtype=np.float32)
        for row, seen in enumerate(self._seen_idx):
            fresh = found[row] >= 0
            if len(seen):
                at = np.minimum(np.searchsorted(seen, found[row]), len(seen) - 1)
                fresh &= seen[at] != found[row]
            kept = np.flatnonzero(fresh)[:k]
            out_idx[row, : len(kept)] = found[row, kept]
            out[row, : len(kept)] = scores[row, kept]
        return out_idx, out

    def at(self, item_idx: Idx) -> Scores:
        vectors = self._source.item_vectors[np.maximum(item_idx, 0)]  # (B, K, D)
        scores = np.matmul(vectors, self._users[:, :, None])[:, :, 0]
        return np.where(item_idx >= 0, scores, np.float32(0)).astype(np.float32)


class TwoTowerSource:
    name = TWO_TOWER

    def __init__(self, model: TwoTower, item_vectors: npt.NDArray[np.float32], index: VectorIndex) -> None:
        """`item_vectors` (N, D), those that the index holds."""
        self.model = model.eval()
        self.item_vectors = item_vectors
        self.index = index

    @classmethod
    def from_model(cls, model: TwoTower, kind: Kind = "auto") -> "TwoTowerSource":
        """Compute every movie's vector and build the index."""
        model = model.eval().cpu()
        with torch.inference_mode():
            vectors = np.ascontiguousarray(model.item_vectors().numpy())
        return cls(model, vectors, VectorIndex.build(vectors, kind))

    def answer(self, states: StateBatch) -> VectorAnswer:
        return VectorAnswer(self.encode(states), self, list(states.seen_idx))

    def encode(self, states: StateBatch) -> npt.NDArray[np.float32]:
        """(B, D) user vectors."""
        return encode_states(self.model, states)

    def save(self, folder: Path) -> None:
        write_json(folder / "towers.json", self.model.shape.as_dict())
        save_file(self.model.state_dict(), folder / "towers.safetensors")
        save_arrays({"item_vectors": self.item_vectors}, folder / "item_vectors.safetensors")
        self.index.save(folder)

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> "TwoTowerSource":
        stored = read_json(folder / "towers.json")
        shape = TowerShape(**{**stored, "profile_sizes": tuple(stored["profile_sizes"])})
        if shape.n_items != len(catalogue):
            raise BundleError(f"{folder}: the towers know {shape.n_items} movies, the catalogue holds {len(catalogue)}")
        model = TwoTower(shape, catalogue)
        model.load_state_dict(load_file(folder / "towers.safetensors"))
        vectors = load_arrays(folder / "item_vectors.safetensors")["item_vectors"]
        return cls(model, vectors, VectorIndex.load(folder))
