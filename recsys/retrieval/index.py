"""The FAISS index over item vectors: exact for small catalogues, approximate for large ones, its recall measured.

What the vectors mean is for the retriever to know that searches them (`VectorScores`).

Shapes: N vectors, D dimensions, B queries, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from recsys.arrays import FloatArray, IntArray
from recsys.errors import BundleError, ConfigError
from recsys.retrieval.retriever import LongestTop, top_k

Kind = Literal["auto", "exact", "ivf"]
EXACT_UP_TO = 20_000  # vectors; of more, not all stay in a processor's cache between requests (docs/adr/0029)
IVF_PROBES, IVF_TRAINED_ON = 128, 64  # lists searched; vectors a list that k-means sees
INDEX_FILES = "index.*.faiss"


@dataclass(frozen=True)
class IndexReport:
    """kind: what was built; recall: share of the exact top `at` that the index returns, mean over sampled queries."""

    kind: str
    recall: float
    at: int
    queries: int


class VectorIndex:
    """Maximum inner product search over item vectors; row numbers are the ids."""

    def __init__(self, index: Any, kind: str) -> None:
        self._index = index
        self.kind = kind

    @classmethod
    def build(cls, vectors: FloatArray, kind: Kind = "auto") -> "VectorIndex":
        """`auto` is exact up to EXACT_UP_TO vectors and inverted lists above."""
        n, dim = vectors.shape
        if kind == "auto":
            kind = "exact" if n <= EXACT_UP_TO else "ivf"
        index: Any  # faiss's own stubs lack the attributes of its wrapped classes
        if kind == "exact":
            index = faiss.IndexFlatIP(dim)
        elif kind == "ivf":
            lists = int(np.clip(4 * np.sqrt(n), 1, max(n // 39, 1)))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.max_points_per_centroid = IVF_TRAINED_ON
            index.train(vectors)
            index.nprobe = min(IVF_PROBES, lists)
        else:
            raise ConfigError(f"unknown index kind {kind!r}; choose auto, exact or ivf")
        index.add(vectors)
        return cls(index, kind)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: FloatArray, k: int, hidden: Sequence[IntArray] | None = None
    ) -> tuple[IntArray, FloatArray]:
        """(B, k) row numbers and inner products, best first; -1 and -inf where there are fewer than k.

        `hidden` are row numbers, for each query, that may not be returned. FAISS takes one such list a search, so a
        batch against an exact index is one matrix product over the index's vectors. Ties are listed by row number,
        which FAISS does not do; which of several tied at the last place get in is its choice.
        """
        hidden = hidden if hidden is not None else [np.empty(0, dtype=np.int64)] * len(queries)
        if self.kind == "exact" and len(queries) > 1:
            return top_k(queries @ self.vectors().T, k, hidden)
        found, scores = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
        for row, query in enumerate(np.ascontiguousarray(queries, dtype=np.float32)):
            values, item_idx = self._index.search(query[None], k, params=self._options(hidden[row]))
            order = np.lexsort((item_idx[0], -values[0]))
            found[row], scores[row] = item_idx[0, order], values[0, order]
        scores[found < 0] = -np.inf
        return found, scores

    def vectors(self) -> FloatArray:
        """(N, D) of an exact index, its own memory."""
        library: Any = faiss
        flat = library.rev_swig_ptr(self._index.get_xb(), len(self) * self._index.d)
        return np.asarray(flat, dtype=np.float32).reshape(len(self), self._index.d)

    def _options(self, hidden: IntArray) -> Any:
        """Options of one search. FAISS passes over what its selector leaves out, while it walks: an approximate walk
        has to look into the more lists, the more is hidden."""
        library: Any = faiss  # its stubs lack the Python side of these classes
        left_out = len(hidden)
        options = {}
        if left_out:
            shown = np.ones(len(self), dtype=bool)
            shown[hidden] = False
            options["sel"] = library.IDSelectorBitmap(np.packbits(shown, bitorder="little"))
        if self.kind == "ivf":
            shown_share = max(len(self) - left_out, 1) / max(len(self), 1)
            lists = min(ceil(self._index.nprobe / shown_share), self._index.nlist)
            return library.SearchParametersIVF(nprobe=lists, **options)
        return library.SearchParameters(**options)

    def measure(self, vectors: FloatArray, queries: FloatArray, at: int) -> IndexReport:
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
    def load(cls, folder: Path, vectors: FloatArray) -> "VectorIndex":
        """Read into memory. Raises BundleError where there is no index, or one that does not hold `vectors` (N, D)."""
        files = list(folder.glob(INDEX_FILES))
        if len(files) != 1:
            raise BundleError(f"{folder} should hold one {INDEX_FILES} file, it holds {len(files)}; train again")
        try:
            found = faiss.read_index(str(files[0]))
        except RuntimeError as error:
            raise BundleError(f"{files[0]} cannot be read ({error}); the bundle is broken, train again") from error
        index = cls(found, files[0].name.split(".")[1])
        if not index._holds(vectors):
            raise BundleError(f"{files[0]} is the index of other vectors; train again")
        return index

    def _holds(self, vectors: FloatArray) -> bool:
        if (len(self), self._index.d) != vectors.shape:
            return False
        if self.kind == "ivf":
            self._index.make_direct_map()
        held = self._index.reconstruct_n(0, len(self))
        if self.kind == "ivf":
            library: Any = faiss
            self._index.set_direct_map_type(library.DirectMap.NoMap)
        return bool(np.array_equal(held, vectors))


class VectorScores(LongestTop):
    """User vectors against an index, which passes over what was seen."""

    def __init__(
        self,
        users: FloatArray,
        vectors: FloatArray,
        index: VectorIndex,
        seen_idx: Sequence[IntArray],
        no_score: float = -np.inf,
    ) -> None:
        """`users` (B, D); `vectors` (N, D), those that the index holds. A score of `no_score` means "no opinion": `top`
        leaves it out."""
        self._users, self._vectors, self._index = users, vectors, index
        self._seen_idx, self._no_score = seen_idx, np.float32(no_score)

    def _top(self, k: int) -> tuple[IntArray, FloatArray]:
        item_idx, scores = self._index.search(self._users, k, self._seen_idx)
        none = (item_idx < 0) | (scores == self._no_score)
        if none.any():
            last = np.argsort(none, axis=1, kind="stable")
            item_idx = np.take_along_axis(np.where(none, -1, item_idx), last, axis=1)
            scores = np.take_along_axis(np.where(none, np.float32(-np.inf), scores), last, axis=1)
        return item_idx, scores

    def at(self, item_idx: IntArray) -> FloatArray:
        scores: FloatArray = np.matvec(self._vectors[item_idx], self._users)  # -1 reads the last item
        scores[item_idx < 0] = 0.0
        return scores
