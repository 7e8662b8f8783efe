"""The FAISS index over movie vectors: exact for small catalogues, approximate for large ones, its recall measured.

Stage: retrieval; built offline, searched online. In: (N, D) float32 vectors. Out: inner-product neighbours. Absent:
what the vectors mean.

Shapes: N vectors, D dimensions, B queries, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt

from recsys.errors import BundleError, ConfigError

Idx = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]

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
    def build(cls, vectors: Float, kind: Kind = "auto") -> "VectorIndex":
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
        elif kind == "ivf":
            lists = int(np.clip(4 * np.sqrt(n), 1, max(n // 39, 1)))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
            index.nprobe = min(IVF_PROBES, lists)
        else:
            raise ConfigError(f"unknown index kind {kind!r}; choose auto, exact, hnsw or ivf")
        index.add(vectors)
        return cls(index, kind)

    def search(self, queries: Float, k: int, hidden: Sequence[Idx] | None = None) -> tuple[Idx, Float]:
        """(B, k) row numbers and inner products, best first; -1 and the lowest float where there are fewer than k.

        `hidden` are row numbers, for each query, that may not be returned. Ties are listed by row number, which FAISS
        does not do; which of several tied at the last place get in is its choice. Every query is searched by itself:
        FAISS sums in another order for many than for one, and an answer must not depend on who else asked.
        """
        found, scores = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
        for row in range(len(queries)):
            query = np.ascontiguousarray(queries[row : row + 1], dtype=np.float32)
            options = self._options(k, None if hidden is None else hidden[row])
            values, item_idx = self._index.search(query, k, params=options)
            order = np.lexsort((item_idx[0], -values[0]))
            found[row], scores[row] = item_idx[0, order], values[0, order]
        return found, scores

    def _options(self, k: int, hidden: Idx | None) -> Any:
        """Options of one search. FAISS passes over what its selector leaves out, while it walks: an approximate walk
        has to be the longer, the more is hidden."""
        library: Any = faiss  # its stubs lack the Python side of these classes
        left_out = 0 if hidden is None else len(hidden)
        options = {}
        if left_out:
            shown = np.ones(self._index.ntotal, dtype=bool)
            shown[hidden] = False
            options["sel"] = library.IDSelectorBitmap(np.packbits(shown, bitorder="little"))
        if self.kind == "hnsw":
            return library.SearchParametersHNSW(efSearch=max(HNSW_SEARCH, k + left_out), **options)
        if self.kind == "ivf":
            return library.SearchParametersIVF(nprobe=self._index.nprobe, **options)
        return library.SearchParameters(**options)

    def measure(self, vectors: Float, queries: Float, at: int) -> IndexReport:
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
        """Vectors stay in the mapped file, which other processes share; nothing can be added to such an index."""
        files = list(folder.glob("index.*.faiss"))
        if len(files) != 1:
            raise BundleError(
                f"{folder} should hold one index.*.faiss file, it holds {len(files)}; register the model again"
            )
        return cls(faiss.read_index(str(files[0]), faiss.IO_FLAG_MMAP_IFC), files[0].name.split(".")[1])
