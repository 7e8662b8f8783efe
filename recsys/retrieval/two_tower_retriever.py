"""The two-tower model and its index as a retriever, without torch: the user tower in NumPy.

User vectors equal torch's (`TwoTower.encode` at a history's end) within float32 rounding. Only the vector after the
last token is needed, which saves most of the work (docs/adr/0018):
- the last layer attends from one position. Its keys and values are never formed: q . (W_k n_j) = (W_k' q) . n_j, and
  sum_j a_j (W_v n_j) = W_v (sum_j a_j n_j); the keys' bias adds the same to every score, which softmax ignores;
- scale and shift of each layer norm are folded into the linear map behind it, and the subtraction of the mean into
  whatever writes to the residual stream, which then has mean zero at every position;
- star and gap embeddings are one table, and so are the head's answers to the time since the last event.

Histories are left-aligned and attention is causal, so what pads a shorter one is never looked at.

Shapes: B users, T tokens with the start token, D dimensions, H heads, E = D / H, N items, K candidates.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from recsys.arrays import DoubleArray, FloatArray, IntArray
from recsys.atomic_io import read_json, write_json
from recsys.columns import TWO_TOWER
from recsys.errors import BundleError
from recsys.features.catalogue import Catalogue
from recsys.features.state import StateBatch
from recsys.retrieval.index import Kind, VectorIndex, VectorScores
from recsys.retrieval.retriever import read_tensors
from recsys.retrieval.tower_inputs import GAP_LEVELS, TowerShape, TowerWeights, tokens_of

if TYPE_CHECKING:  # a service must start without torch, which costs two seconds and 200 MB
    from recsys.retrieval.two_tower import TwoTower

NORM_EPSILON = np.float32(1e-5)  # torch's default
AT_ONCE = 32  # users of a slice: their scores stay in a core's cache
# erfc(z) = 1 / (1 + a1 z + .. + a6 z^6)^16, z >= 0; the error is below 3e-7. Here for |x| instead of z = |x| / sqrt 2.
# Source: M. Abramowitz, I. Stegun, Handbook of Mathematical Functions, 7.1.28.
ERFC = (0.0705230784, 0.0422820123, 0.0092705272, 0.0001520143, 0.0002765672, 0.0000430638)
ERFC_OF_SIZE = [np.float32(a * 0.5 ** (power / 2)) for power, a in enumerate(ERFC, 1)]


def normalised(x: FloatArray) -> FloatArray:
    """Rows of mean zero -> rows of variance one."""
    variance = np.vecdot(x, x)
    variance /= np.float32(x.shape[-1])
    variance += NORM_EPSILON
    return np.asarray(x / np.sqrt(variance)[..., None], dtype=np.float32)


def gelu(x: FloatArray) -> FloatArray:
    """Each x times the normal distribution function, as max(x, 0) - |x| erfc(|x| / sqrt 2) / 2; within 8e-7.

    scipy's erf is four times slower: it has an exponential and takes one value at a time.
    """
    size = np.abs(x)
    t = np.zeros_like(size)
    for a in reversed(ERFC_OF_SIZE):
        t += a
        t *= size
    t += np.float32(1)
    with np.errstate(over="ignore"):  # far from 0 there is nothing to take away
        for _ in range(4):
            t *= t
    size *= np.float32(0.5)
    size /= t
    return np.maximum(x, np.float32(0)) - size


def softmax(scores: FloatArray) -> FloatArray:
    """Over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


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
        """(B, T, D) -> (B, T, D), all positions."""
        size, length, dim = x.shape
        heads = len(self.bias)
        flat = x.reshape(size * length, dim)
        qkv = normalised(flat) @ self.qkv
        qkv += self.qkv_bias
        q, k, v = qkv.reshape(size, length, 3, heads, dim // heads).transpose(2, 0, 3, 1, 4)  # (B, H, T, E) each
        scores = q @ k.transpose(0, 1, 3, 2)  # (B, H, T, T)
        scores += self.bias[:, :length, :length]
        attended = softmax(scores) @ v
        return self._rest(flat, attended.transpose(0, 2, 1, 3).reshape(flat.shape)).reshape(x.shape)

    def last(self, x: FloatArray, at: IntArray) -> FloatArray:
        """(B, T, D) -> (B, D), the positions `at` (B,) only."""
        length, dim = x.shape[1:]
        heads = len(self.bias)
        rows = np.arange(len(x))
        n = normalised(x)
        q = n[rows, at] @ self.qkv[:, :dim]
        q += self.qkv_bias[:dim]
        by_head = q.reshape(len(x), heads, -1).transpose(1, 0, 2)  # (H, B, E)
        queries = (by_head @ self.key.transpose(0, 2, 1)).transpose(1, 0, 2)  # (B, H, D)
        scores = np.asarray(queries @ n.transpose(0, 2, 1), dtype=np.float32)  # (B, H, T)
        scores += self.bias[:, at, :length].transpose(1, 0, 2)
        attended = ((softmax(scores) @ n).transpose(1, 0, 2) @ self.value).transpose(1, 0, 2)  # (B, H, E)
        return self._rest(x[rows, at], np.asarray(attended.reshape(len(x), dim) + self.value_bias, dtype=np.float32))

    def _rest(self, x: FloatArray, attended: FloatArray) -> FloatArray:
        """Output map, residual and perceptron, of (.., D)."""
        x = attended @ self.out + x
        x += self.out_bias
        hidden = normalised(x) @ self.up
        hidden += self.up_bias
        x += gelu(hidden) @ self.down
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
        # (RATING_LEVELS * GAP_LEVELS, D)
        self._extra: FloatArray = (rating[:, None] + gap[None]).reshape(-1, shape.dim)
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
        if len(states) == 1:
            return self._encode(states)
        users = np.empty((len(states), self.shape.dim), dtype=np.float32)
        by_length = np.argsort((states.item_idx >= 0).sum(axis=1), kind="stable")  # alike lengths need little padding
        for low in range(0, len(states), AT_ONCE):
            rows = by_length[low : low + AT_ONCE]
            users[rows] = self._encode(states.rows(rows))
        return users

    def _encode(self, states: StateBatch) -> FloatArray:
        tokens = tokens_of(states, self.shape.max_length)
        size, length = tokens.item_idx.shape
        x = np.empty((size, length + 1, self.shape.dim), dtype=np.float32)
        x[:, 0] = self._start
        for i, table in enumerate(self._profile):
            x[:, 0] += table[tokens.profile[:, i]]
        x[:, 1:] = self._item_vectors[tokens.item_idx]  # beyond a history's end the last item
        x[:, 1:] += self._extra[tokens.ratings * GAP_LEVELS + tokens.gaps]
        x -= (x @ self._mean)[:, :, None]
        for block in self._blocks[:-1]:
            x = block.forward(x)
        end = self._blocks[-1].last(x, tokens.count) if self._blocks else x[np.arange(size), tokens.count]
        return normalised(end) @ self._head + self._head_bias[tokens.query_gap]


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
        write_json(folder / "towers.json", asdict(self.model.shape))
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
