"""The user tower at request time, in NumPy: the same function as `TwoTower.encode` at a history's end, without torch.

Stage: retrieval; both tracks. In: weights of a trained `TwoTower`, the item vectors and a `StateBatch`. Out: (B, D)
user vectors, equal to torch's within float32 rounding. Absent: training, and batching: each state is encoded by
itself, so that there is no padding and no mask, and a batch of any size gives the same bits as its rows one by one.

Only the vector after the last token is needed, which saves most of the work:
- the last layer attends from one position. Its keys and values are never formed: q . (W_k n_j) = (W_k' q) . n_j, and
  sum_j a_j (W_v n_j) = W_v (sum_j a_j n_j); the keys' bias adds the same to every score, which softmax ignores;
- scale and shift of each layer norm are folded into the linear map behind it, and the subtraction of the mean into
  whatever writes to the residual stream, which then has mean zero at every position;
- star and gap embeddings are one table, and so are the head's answers to the time since the last event.

Shapes: B users, T tokens with the start token, D dimensions, H heads, E = D / H, N items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.arrays import DoubleArray, FloatArray
from recsys.features.state import StateBatch
from recsys.retrieval.kernels import gelu
from recsys.retrieval.tower_inputs import GAP_LEVELS, TowerShape, TowerWeights, tokens_of

NORM_EPSILON = np.float32(1e-5)  # torch's default


def normalised(x: FloatArray) -> FloatArray:
    """Rows of mean zero -> rows of variance one."""
    variance = np.vecdot(x, x)
    variance /= np.float32(x.shape[-1])
    variance += NORM_EPSILON
    return np.asarray(x / np.sqrt(variance)[..., None], dtype=np.float32)


@dataclass(frozen=True)
class _Block:
    """One layer, folded: linear maps are (in, out).

    qkv (D, 3D), qkv_bias (3D,)   queries are scaled by 1 / sqrt E
    key (H, D, E), value (H, D, E), value_bias (D,)   the same by head, for the last layer
    bias (H, T, T)   by distance, -inf above the diagonal
    """

    qkv: FloatArray
    qkv_bias: FloatArray
    key: FloatArray
    value: FloatArray
    value_bias: FloatArray
    out: FloatArray
    out_bias: FloatArray
    bias: FloatArray
    up: FloatArray
    up_bias: FloatArray
    down: FloatArray
    down_bias: FloatArray

    def forward(self, x: FloatArray) -> FloatArray:
        """(T, D) -> (T, D), all positions."""
        length, dim = x.shape
        heads = len(self.bias)
        qkv = normalised(x) @ self.qkv
        qkv += self.qkv_bias
        q, k, v = qkv.reshape(length, 3, heads, dim // heads).transpose(1, 2, 0, 3)  # (H, T, E) each
        scores = q @ k.transpose(0, 2, 1)  # (H, T, T)
        scores += self.bias[:, :length, :length]
        scores -= scores.max(axis=2, keepdims=True)
        np.exp(scores, out=scores)
        attended = scores @ v
        attended /= scores.sum(axis=2, keepdims=True)
        return self._rest(x, attended.transpose(1, 0, 2).reshape(length, dim))

    def last(self, x: FloatArray) -> FloatArray:
        """(T, D) -> (1, D), the last position only."""
        length, dim = x.shape
        heads = len(self.bias)
        n = normalised(x)
        q = n[-1] @ self.qkv[:, :dim]
        q += self.qkv_bias[:dim]
        queries = (self.key @ q.reshape(heads, -1, 1))[:, :, 0]  # (H, D)
        scores = queries @ n.T  # (H, T)
        scores += self.bias[:, length - 1, :length]
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        attended = ((scores @ n)[:, None, :] @ self.value).reshape(1, dim)
        attended += self.value_bias
        return self._rest(x[-1:], attended)

    def _rest(self, x: FloatArray, attended: FloatArray) -> FloatArray:
        """Output map, residual and perceptron."""
        x = attended @ self.out + x
        x += self.out_bias
        hidden = normalised(x) @ self.up
        hidden += self.up_bias
        gelu(hidden)
        x += hidden @ self.down
        x += self.down_bias
        return x


class TowerEncoder:
    """The user tower of one bundle."""

    def __init__(self, model: TowerWeights, item_vectors: FloatArray) -> None:
        """`item_vectors` (N, D) are not copied."""
        shape, weights = model.shape, model.arrays
        self.shape = shape
        self._item_vectors = item_vectors
        rating, gap = weights["rating.weight"], weights["gap.weight"]
        self._extra: FloatArray = (rating[:, None] + gap[None]).reshape(
            -1, shape.dim
        )  # row: rating level * GAP_LEVELS + gap
        self._start: FloatArray = weights["start"]
        self._mean = np.full(shape.dim, 1.0 / shape.dim, dtype=np.float32)  # x @ mean is the mean of each row
        self._profile: list[FloatArray] = [weights[f"profile.{i}.weight"] for i in range(len(shape.profile_sizes))]
        self._blocks = [_folded(weights, f"blocks.{i}.", shape) for i in range(shape.layers)]
        head = weights["head.weight"].astype(np.float64)
        known = weights["norm.bias"] + weights["query_gap.weight"].astype(np.float64)  # (GAP_LEVELS, D)
        self._head = _float32(weights["norm.weight"][:, None] * head.T)
        self._head_bias = _float32(known @ head.T + weights["head.bias"])  # (GAP_LEVELS, D)

    def encode(self, states: StateBatch) -> FloatArray:
        """(B, D) user vectors."""
        users = np.empty((len(states), self.shape.dim), dtype=np.float32)
        for row in range(len(states)):
            users[row] = self._encode(states, row)
        return users

    def _encode(self, states: StateBatch, row: int) -> FloatArray:
        tokens = tokens_of(states, row, self.shape.max_length)
        x = np.empty((len(tokens.item_idx) + 1, self.shape.dim), dtype=np.float32)
        x[0] = self._start
        for table, level in zip(self._profile, tokens.profile, strict=True):
            x[0] += table[level]
        x[1:] = self._item_vectors[tokens.item_idx]
        x[1:] += self._extra[tokens.ratings * GAP_LEVELS + tokens.gaps]
        x -= (x @ self._mean)[:, None]
        for block in self._blocks[:-1]:
            x = block.forward(x)
        x = self._blocks[-1].last(x) if self._blocks else x[-1:]
        return np.asarray(normalised(x)[0] @ self._head + self._head_bias[tokens.query_gap], dtype=np.float32)


def _folded(weights: Mapping[str, npt.NDArray[Any]], prefix: str, shape: TowerShape) -> _Block:
    """One layer's maps with the norms before and the mean subtraction after folded in; sums in float64."""

    def of(name: str) -> DoubleArray:
        return weights[prefix + name].astype(np.float64)

    def after_norm(norm: str, linear: str) -> tuple[DoubleArray, DoubleArray]:
        weight = of(f"{linear}.weight")  # (out, in)
        return (weight * of(f"{norm}.weight")).T, weight @ of(f"{norm}.bias") + of(f"{linear}.bias")

    def into_stream(linear: str) -> tuple[FloatArray, FloatArray]:
        weight, bias = of(f"{linear}.weight"), of(f"{linear}.bias")
        return _float32((weight - weight.mean(axis=0)).T), _float32(bias - bias.mean())

    dim, heads = shape.dim, shape.heads
    qkv, qkv_bias = after_norm("norm_attention", "qkv")
    scale = (dim // heads) ** -0.5
    qkv[:, :dim] *= scale
    qkv_bias[:dim] *= scale
    by_head = _float32(qkv.reshape(dim, 3, heads, dim // heads).transpose(1, 2, 0, 3))  # (3, H, D, E)
    steps = np.arange(shape.max_length + 1)
    distance = steps[:, None] - steps[None, :]
    bias = np.where(distance >= 0, of("distance_bias")[:, np.maximum(distance, 0)], -np.inf)
    up, up_bias = after_norm("norm_mlp", "mlp.0")
    return _Block(
        _float32(qkv),
        _float32(qkv_bias),
        by_head[1],
        by_head[2],
        _float32(qkv_bias[2 * dim :]),
        *into_stream("out"),
        _float32(bias),
        _float32(up),
        _float32(up_bias),
        *into_stream("mlp.3"),
    )


def _float32(values: npt.NDArray[Any]) -> FloatArray:
    return np.ascontiguousarray(values, dtype=np.float32)
