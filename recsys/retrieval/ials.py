"""iALS: implicit-feedback matrix factorisation; a request's user vector is folded in from a recency-weighted history.

No user vectors are stored: most test events belong to users whom training never saw, so every vector is made at request
time. Only `fit` imports the library that fits, so a service does without it.

Source: Y. Hu, Y. Koren, C. Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008; the fit is that
of the library `implicit`, with confidence 1 + alpha of what was rated and 1 of the rest. Fold-in solves
(Y'Y + lambda I + alpha sum_i w_i y_i y_i') u = (1 + alpha) sum_i w_i y_i. Its weights w_i = (1 + s)^-power, s = steps
back, say how much of an event counts: 1 is the equation of the fit, 0 is as if it had not happened.

Shapes: N items, D factors, U users, B users of a request, L history length, T events that exist.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from recsys.arrays import FloatArray, IntArray
from recsys.columns import IALS
from recsys.features.state import StateBatch
from recsys.retrieval.index import EXACT_UP_TO, INDEX_FILES, VectorIndex, VectorScores
from recsys.retrieval.item_tables import interactions
from recsys.retrieval.retriever import DenseScores, RetrieverScores, read_tensors, recency_weights
from recsys.threads import limited


class Ials:
    name = IALS

    def __init__(
        self, factors: FloatArray, regularisation: float, alpha: float, power: float, index: VectorIndex | None = None
    ) -> None:
        """`factors` (N, D); an item without events has zeros and is never returned. `index`: of them; without one
        every item is scored."""
        self.factors, self.index = factors, index
        self._without_events = np.flatnonzero(~factors.any(axis=1))  # their 0 would stand before all that is negative
        self.regularisation, self.alpha, self.power = regularisation, alpha, power
        gram = (factors.T @ factors).astype(np.float64)
        self._inverse: FloatArray = np.linalg.inv(gram + regularisation * np.eye(len(gram))).astype(np.float32)

    @classmethod
    def fit(
        cls,
        user_idx: IntArray,
        item_idx: IntArray,
        n_items: int,
        *,
        dim: int,
        regularisation: float,
        alpha: float,
        iterations: int,
        power: float,
        seed: int = 7,
    ) -> "Ials":
        """From (E,) events. The random start depends on how many users have events, not on their row numbers: somebody
        who comes after the cutoff changes nothing."""
        from implicit.cpu.als import AlternatingLeastSquares

        with limited(1):  # sums would depend on how many threads BLAS has, and `implicit` warns of more than one
            model = AlternatingLeastSquares(
                factors=dim,
                regularization=regularisation,
                alpha=1.0 + alpha,  # there the name of the whole confidence of an event; the paper's is 1 + alpha
                iterations=iterations,
                random_state=seed,
                num_threads=1,
            )
            model.fit(interactions(user_idx, item_idx, n_items), show_progress=False)
        return cls.of_factors(np.asarray(model.item_factors, dtype=np.float32), regularisation, alpha, power)

    @classmethod
    def of_factors(cls, factors: FloatArray, regularisation: float, alpha: float, power: float) -> "Ials":
        """With an index where the items are too many for an exact one."""
        index = VectorIndex.build(factors) if len(factors) > EXACT_UP_TO else None
        return cls(factors, regularisation, alpha, power, index)

    def encode(self, states: StateBatch) -> FloatArray:
        """(B, D) user vectors; zeros where the history is empty.

        With A = Y'Y + lambda I, whose inverse is kept, and R the rows sqrt(w_i) y_i of a user:
        (A + alpha R'R)^-1 R' = A^-1 R' (I + alpha R A^-1 R')^-1, a system of L equations. Rows without an event are 0.
        """
        root = np.sqrt(recency_weights(states, self.power))[:, :, None]  # (B, L, 1)
        rows = self.factors[np.maximum(states.item_idx, 0)] * root  # (B, L, D)
        solved = rows @ self._inverse
        system = np.float32(self.alpha) * (solved @ rows.transpose(0, 2, 1))  # (B, L, L)
        system += np.eye(system.shape[1], dtype=np.float32)
        shares = np.linalg.solve(system, np.float32(1.0 + self.alpha) * root)  # (B, L, 1)
        return np.asarray((shares * solved).sum(axis=1), dtype=np.float32)

    def answer(self, states: StateBatch) -> RetrieverScores:
        users = self.encode(states)
        if self.index is None:
            return DenseScores(users @ self.factors.T, states.seen_idx)
        hidden = [np.concatenate([seen, self._without_events]) for seen in states.seen_idx]
        return VectorScores(users, self.factors, self.index, hidden, no_score=0.0)

    @property
    def n_items(self) -> int:
        return len(self.factors)

    def save(self, folder: Path) -> None:
        settings = np.array([self.regularisation, self.alpha, self.power], dtype=np.float64)
        save_file({"factors": self.factors, "settings": settings}, folder / "ials.safetensors")
        if self.index is not None:
            self.index.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "Ials":
        """Raises BundleError where the index is one of other factors. Without one every item is scored."""
        stored = read_tensors(folder / "ials.safetensors", {"factors": (None, None), "settings": (3,)})
        factors = stored["factors"]
        regularisation, alpha, power = stored["settings"].tolist()
        index = VectorIndex.load(folder, factors) if any(folder.glob(INDEX_FILES)) else None
        return cls(factors, regularisation, alpha, power, index)
