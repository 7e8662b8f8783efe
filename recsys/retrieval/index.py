"""The FAISS index over movie vectors: exact for small catalogues, approximate for large ones, its recall measured.

Stage: retrieval; built offline, searched online. In: (N, D) float32 vectors. Out: inner-product neighbours. Absent:
what the vectors mean.

Shapes: N vectors, D dimensions, B queries, k neighbours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt

from recsys.errors import BundleError, ConfigError

Kind = Literal["auto", "exact", "hnsw", "ivf"]
EXACT_UP_TO = 200_000  # vectors; exact search of 62 k x 64 takes 0.7 ms on one thread, so there is no need earlier
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 256
IVF_PROBES = 64


@dataclass(frozen=True)
class IndexReport:
    """kind: what was built; recall: share of the exact top `at` that the index returns, mean over sampled queries."""

    kind: str
    recall: float
    at: int
    queries: int


class VectorIndex:
    """Maximum inner product search over movie vectors; row numbers are the ids."""

    def __init__(self, index: Any, kind: str) -> None:
        self._index = index
        self.kind = kind

    @classmethod
    def build(cls, vectors: npt.NDArray[np.float32], kind: Kind = "auto") -> "VectorIndex":
        """`auto` is exact up to EXACT_UP_TO vectors and HNSW above."""
        n, dim = vectors.shape
        if kind == "auto":
            kind = "exact" if n <= EXACT_UP_TO else "hnsw"
        index: Any  # faiss's own stubs lack the attributes of its wrapped classes
        if kind == "exact":
            index = faiss.IndexFlatIP(dim)
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = HNSW_BUILD
            index.hnsw.efSearch = HNSW_SEARCH
        elif kind == "ivf":
            lists = int(np.clip(4 * np.sqrt(n), 1, max(n // 39, 1)))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
            index.nprobe = min(IVF_PROBES, lists)
        else:
            raise ConfigError(f"unknown index kind {kind!r}; choose auto, exact, hnsw or ivf")
        index.add(vectors)
        return cls(index, kind)

    def search(self, queries: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(B, k) row numbers and inner products, best first; -1 and the lowest float where there are fewer than k.
        Ties are listed by row number, which FAISS does not do; which of several tied at the last place get in is its
        choice."""
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(HNSW_SEARCH, k)
        scores, item_idx = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        order = np.lexsort((item_idx, -scores), axis=1)
        return np.take_along_axis(item_idx, order, axis=1).astype(np.int64), np.take_along_axis(scores, order, axis=1)

    def measure(self, vectors: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], at: int) -> IndexReport:
        """Recall against exact search of the same vectors for the given queries."""
        at = min(at, len(vectors))
        if self.kind == "exact":
            return IndexReport(self.kind, 1.0, at, len(queries))
        exact, _ = VectorIndex.build(vectors, "exact").search(queries, at)
        found, _ = self.search(queries, at)
        shares = [len(np.intersect1d(a, b)) / at for a, b in zip(exact, found, strict=True)]
        return IndexReport(self.kind, float(np.mean(shares)), at, len(queries))

    def save(self, folder: Path) -> None:
        faiss.write_index(self._index, str(folder / f"index.{self.kind}.faiss"))

    @classmethod
    def load(cls, folder: Path) -> "VectorIndex":
        files = list(folder.glob("index.*.faiss"))
        if len(files) != 1:
            raise BundleError(
                f"{folder} should hold one index.*.faiss file, it holds {len(files)}; register the model again"
            )
        return cls(faiss.read_index(str(files[0])), files[0].name.split(".")[1])
