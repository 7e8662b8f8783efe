"""iALS: implicit-feedback matrix factorisation; a request's user vector is folded in from a recency-weighted history.

Stage: retrieval. In: events up to a cutoff. Out: a vector for every movie and a score for every movie. Absent: stored
user vectors. Most test events belong to users whom training never saw, so every vector is made at request time. Only
`fit` imports the library that fits, so a service does without it.

Source: Y. Hu, Y. Koren, C. Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008; the fit is that
of the library `implicit`, with confidence 1 + alpha of what was rated and 1 of the rest. Fold-in solves
(Y'Y + lambda I + alpha sum_i w_i y_i y_i') u = (1 + alpha) sum_i w_i y_i. Its weights w_i = (1 + s)^-power, s = steps
back, say how much of an event counts: 1 is the equation of the fit, 0 is as if it had not happened.

Shapes: N movies, D factors, U users, B users of a request, L history length.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from recsys.columns import IALS
from recsys.features.state import StateBatch
from recsys.retrieval.source import DenseAnswer, recency_weights
from recsys.retrieval.sparse_table import interactions

Float = npt.NDArray[np.float32]


class Ials:
    name = IALS

    def __init__(self, factors: Float, regularisation: float, alpha: float, power: float) -> None:
        """`factors` (N, D); a movie without events has zeros and is never returned."""
        self._padded: Float = np.zeros((len(factors) + 1, factors.shape[1]), dtype=np.float32)
        self._padded[:-1] = factors  # the last row stands for "no event"
        self.factors = self._padded[:-1]
        self.regularisation, self.alpha, self.power = regularisation, alpha, power
        gram = self.factors.T @ self.factors
        self._gram: Float = gram + regularisation * np.eye(len(gram), dtype=np.float32)

    @classmethod
    def fit(
        cls,
        user_idx: npt.NDArray[np.int64],
        item_idx: npt.NDArray[np.int64],
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
        from threadpoolctl import threadpool_limits

        x = interactions(user_idx, item_idx, n_items)
        with threadpool_limits(1, "blas"):  # `implicit` warns of more, and sums would depend on their number
            model = AlternatingLeastSquares(
                factors=dim,
                regularization=regularisation,
                alpha=1.0 + alpha,  # there the name of the whole confidence of an event; the paper's is 1 + alpha
                iterations=iterations,
                random_state=seed,
                num_threads=1,
            )
            model.fit(x, show_progress=False)
        return cls(np.asarray(model.item_factors, dtype=np.float32), regularisation, alpha, power)

    def encode(self, states: StateBatch) -> Float:
        """(B, D) user vectors; zeros where the history is empty."""
        weights = recency_weights(states, self.power)  # (B, L)
        past = self._padded[states.item_idx]  # (B, L, D); -1 is the last row
        left = self._gram + np.matmul((past * (self.alpha * weights)[:, :, None]).transpose(0, 2, 1), past)
        right = ((1.0 + self.alpha) * weights)[:, None, :] @ past  # (B, 1, D)
        return np.asarray(np.linalg.solve(left, right.transpose(0, 2, 1))[:, :, 0], dtype=np.float32)

    def answer(self, states: StateBatch) -> DenseAnswer:
        return DenseAnswer(self.encode(states) @ self.factors.T, states.seen_idx)

    def save(self, folder: Path) -> None:
        settings = np.array([self.regularisation, self.alpha, self.power], dtype=np.float64)
        save_file({"factors": self.factors, "settings": settings}, folder / "ials.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Ials":
        stored = load_file(folder / "ials.safetensors")
        regularisation, alpha, power = stored["settings"].tolist()
        return cls(stored["factors"], regularisation, alpha, power)
