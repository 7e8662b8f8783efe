"""The two-tower model and its FAISS index as a retriever.

It encodes states, searches the index and scores any item by inner product; it needs no torch.

Shapes: B users, N items, K candidates, D dimensions.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import save_file

from recsys.arrays import FloatArray
from recsys.atomic_io import read_json, write_json
from recsys.columns import TWO_TOWER
from recsys.errors import BundleError
from recsys.features.catalogue import Catalogue
from recsys.features.state import StateBatch
from recsys.retrieval.index import Kind, VectorIndex, VectorScores
from recsys.retrieval.tensor_file import read_tensors
from recsys.retrieval.tower_inference import TowerEncoder
from recsys.retrieval.tower_inputs import TowerShape, TowerWeights

if TYPE_CHECKING:  # a service must start without torch, which costs two seconds and 200 MB
    from recsys.retrieval.two_tower import TwoTower


class TwoTowerRetriever:
    name = TWO_TOWER

    def __init__(self, model: TowerWeights, item_vectors: FloatArray, index: VectorIndex) -> None:
        """`item_vectors` (N, D), those that the index holds."""
        self.model = model
        self.item_vectors = item_vectors
        self.index = index
        self._encoder = TowerEncoder(model, item_vectors)

    @classmethod
    def from_model(cls, model: "TwoTower", kind: Kind = "auto") -> "TwoTowerRetriever":
        """Compute every item's vector and build the index."""
        weights, vectors = model.eval().export()
        return cls(weights, vectors, VectorIndex.build(vectors, kind))

    def answer(self, states: StateBatch) -> VectorScores:
        return VectorScores(self.encode(states), self.item_vectors, self.index, states.seen_idx)

    def encode(self, states: StateBatch) -> FloatArray:
        """(B, D) user vectors."""
        return self._encoder.encode(states)

    @property
    def n_items(self) -> int:
        return len(self.item_vectors)

    def save(self, folder: Path) -> None:
        write_json(folder / "towers.json", self.model.shape.as_dict())
        save_file(dict(self.model.arrays), folder / "towers.safetensors")
        save_file({"item_vectors": self.item_vectors}, folder / "item_vectors.safetensors")
        self.index.save(folder)

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> "TwoTowerRetriever":
        """Raises BundleError for towers of another catalogue, or files that do not fit together."""
        try:
            stored = read_json(folder / "towers.json")
            shape = TowerShape(**{**stored, "profile_sizes": tuple(stored["profile_sizes"])})
            shapes = shape.weight_shapes()
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder / 'towers.json'} cannot be read ({error!r}); train again") from error
        if shape.n_items != len(catalogue):
            raise BundleError(f"{folder}: the towers know {shape.n_items} items, the catalogue holds {len(catalogue)}")
        model = TowerWeights(shape, read_tensors(folder / "towers.safetensors", shapes))
        wanted = {"item_vectors": (shape.n_items, shape.dim)}
        vectors = read_tensors(folder / "item_vectors.safetensors", wanted)["item_vectors"]
        return cls(model, vectors, VectorIndex.load(folder, vectors))
