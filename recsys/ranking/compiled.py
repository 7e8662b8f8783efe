"""The ranker with its trees in machine code: the same scores to the last bit, some thirty times sooner.

Stage: ranking; scoring on both tracks. In: a `BoostedRanker`. Out: a `CompiledRanker`, or the same ranker where its
trees cannot be compiled. Absent: the machine code itself (`tree_kernel`), fitting, and files: what is saved is
LightGBM's text.

A threshold is a double and a value a float32, so `value <= threshold` says the same with the largest float32 that is
not above the threshold. LightGBM takes a value of at most ZERO for 0, which moves the thresholds that lie so close to
0, and where a split knows nothing of missing values it takes one for 0. Categorical splits, linear leaves, zero as the
missing value and anything but one sum of trees are refused.

Shapes: R rows, F features, T trees, J nodes, W bits of a lane.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from recsys.arrays import DoubleArray, FloatArray, IntArray
from recsys.errors import RecsysError
from recsys.ranking.ranker import BoostedRanker, Ranker
from recsys.ranking.tree_kernel import BLOCK, LANES, TreeKernel, tree_kernel

ZERO: Final = float(np.float32(1e-35))  # LightGBM's kZeroThreshold
CATEGORICAL, DEFAULT_LEFT = 1, 2  # bits of a node's decision_type; above them stands what it takes for missing
MISSING_NONE, MISSING_NAN = 0, 2
CHECKED_ROWS: Final = 512
log = logging.getLogger(__name__)


class CompilationError(RecsysError):
    """These trees cannot be compiled here; LightGBM scores them, slower."""


class CompiledRanker(BoostedRanker):
    """A `BoostedRanker` whose trees are walked by machine code; all else, the booster included, is as before."""

    def __init__(self, ranker: BoostedRanker) -> None:
        """Compiles and checks itself against LightGBM. Raises CompilationError where either fails."""
        super().__init__(ranker.booster, ranker.threads, ranker.base)
        self._trees = PackedTrees.from_text(ranker.booster.model_to_string())
        try:
            self._kernel: TreeKernel = tree_kernel(self._trees.bits)
        except (ImportError, OSError, RuntimeError) as error:
            raise CompilationError(f"LLVM cannot be used here: {error}") from error
        rows = self._trees.telling_rows(len(self.feature_names), CHECKED_ROWS)
        differing = int((self.tree_scores(rows) != ranker.tree_scores(rows)).sum())
        if differing:
            raise CompilationError(f"{differing} of {CHECKED_ROWS} rows score otherwise than in LightGBM")

    def tree_scores(self, rows: FloatArray) -> DoubleArray:
        """Bit-equal to LightGBM's for float32 rows. Raises ValueError for another number of columns."""
        n, features = rows.shape
        if features != len(self.feature_names):
            raise ValueError(f"rows have {features} columns, the trees know {len(self.feature_names)}")
        columns = np.zeros((features, -(-n // BLOCK) * BLOCK), dtype=np.float32)
        columns[:, :n] = rows.T
        trees = self._trees
        return self._kernel(columns, trees.bounds, trees.feature, trees.threshold, trees.kept, trees.leaf)[:n]


def compile_ranker(ranker: Ranker) -> Ranker:
    """A ranker with the same scores whose trees are compiled, checked against LightGBM; takes some 0.2 s, of which the
    first call in a process spends most on loading LLVM. What cannot be compiled comes back as it is, with the reason in
    the log: trees that the kernel does not know, or a machine without LLVM. A ranker without trees needs no compiling.
    """
    if not isinstance(ranker, BoostedRanker) or isinstance(ranker, CompiledRanker):
        return ranker
    try:
        return CompiledRanker(ranker)
    except CompilationError as error:
        log.warning("the ranker is not compiled, LightGBM scores: %s", error)
        return ranker


@dataclass(frozen=True)
class PackedTrees:
    """All trees as the arrays that `TreeKernel` takes; `bits` is the W that they need."""

    bits: int
    bounds: IntArray
    feature: IntArray
    threshold: FloatArray
    kept: npt.NDArray[np.signedinteger[Any]]
    leaf: DoubleArray

    @classmethod
    def from_text(cls, model: str) -> "PackedTrees":
        """From LightGBM's text format. Raises CompilationError for what the kernel does not know."""
        head, *blocks = model.split("\nTree=")
        if "\naverage_output" in head or _fields(head).get("num_tree_per_iteration") != "1":
            raise CompilationError("only trees that are summed to one score can be compiled")
        trees = [_Tree.from_fields(_fields(block)) for block in blocks]
        widest = max((len(tree.leaf) for tree in trees), default=1)
        bits = next(lane for lane in LANES if lane >= widest)
        leaf = np.zeros((len(trees), widest))
        for row, tree in enumerate(trees):
            leaf[row, : len(tree.leaf)] = tree.leaf
        sizes = np.array([len(tree.feature) for tree in trees], dtype=np.int64)
        last = np.cumsum(sizes)
        middle = last - sizes + [tree.missing_left for tree in trees]
        kept = np.array([mask for tree in trees for mask in tree.kept], dtype=np.int64)
        return cls(
            bits=bits,
            bounds=np.stack([last - sizes, middle.astype(np.int64), last], axis=1),
            feature=np.array([f for tree in trees for f in tree.feature], dtype=np.int64),
            threshold=np.array([t for tree in trees for t in tree.threshold], dtype=np.float32),
            kept=kept.astype(f"int{bits}"),
            leaf=leaf,
        )

    def telling_rows(self, n_features: int, size: int) -> FloatArray:
        """(size, F) rows of the values at which trees go wrong: each feature's thresholds and their neighbours, nearly
        0, infinite and missing. The same for the same trees."""
        rng = np.random.default_rng(len(self.feature))
        odd = np.array([0.0, ZERO, -ZERO, 1e-38, -1e-38, np.inf, -np.inf, np.nan], dtype=np.float32)
        columns = []
        for feature in range(n_features):
            at = np.unique(self.threshold[self.feature == feature])
            with np.errstate(over="ignore"):  # beside the largest float32 lies infinity
                near = [np.nextafter(at, np.float32(side)) for side in (-np.inf, np.inf)]
            columns.append(rng.choice(np.concatenate([at, *near, odd]), size))
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class _Tree:
    """feature, threshold, kept of each node, first those at which a missing value goes left, which are `missing_left`;
    kept: the leaves that remain where a row goes right, as bits; leaf: the values, from the left."""

    feature: list[int]
    threshold: list[np.float32]
    kept: list[int]
    missing_left: int
    leaf: list[float]

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "_Tree":
        """Raises CompilationError for a tree that the kernel does not know."""
        try:
            leaves = int(fields["num_leaves"])
            linear, categories = int(fields["is_linear"]), int(fields["num_cat"])
            value = [float(x) for x in fields["leaf_value"].split()]
            feature, kind, left, right = (
                [int(x) for x in fields[name].split()] if leaves > 1 else []
                for name in ("split_feature", "decision_type", "left_child", "right_child")
            )
            above = [float(x) for x in fields["threshold"].split()] if leaves > 1 else []
        except (KeyError, ValueError) as error:
            raise CompilationError(f"a tree of LightGBM's text cannot be read: {error!r}") from error
        if linear or categories or any(k & CATEGORICAL for k in kind):
            raise CompilationError("trees with linear leaves or categorical splits cannot be compiled")
        if leaves > LANES[-1]:
            raise CompilationError(f"a tree has {leaves} leaves; up to {LANES[-1]} can be compiled")
        leaf: list[float] = []
        kept = [0] * len(feature)

        def walk(node: int) -> None:
            if node < 0:
                leaf.append(value[~node])
                return
            first = len(leaf)
            walk(left[node])
            kept[node] = ~((1 << len(leaf)) - (1 << first))
            walk(right[node])

        walk(0 if feature else -1)
        goes_left = [_missing_goes_left(k, t) for k, t in zip(kind, above, strict=True)]
        order = sorted(range(len(feature)), key=lambda node: not goes_left[node])
        return cls(
            [feature[node] for node in order],
            [_as_float32(above[node]) for node in order],
            [kept[node] for node in order],
            sum(goes_left),
            leaf,
        )


def _missing_goes_left(decision_type: int, threshold: float) -> bool:
    """Where NaN goes. Raises CompilationError where zero means missing too."""
    missing = decision_type >> 2
    if missing == MISSING_NAN:
        return bool(decision_type & DEFAULT_LEFT)
    if missing == MISSING_NONE:
        return threshold >= 0.0
    raise CompilationError("trees that take zero for missing cannot be compiled")


def _as_float32(threshold: float) -> np.float32:
    """The largest float32 that is not above it; for one within ZERO of 0, the bound of all values that LightGBM reads
    as 0 and sends the same way.

    >>> float(_as_float32(0.1)), float(np.float32(0.1))
    (0.09999999403953552, 0.10000000149011612)
    """
    if 0.0 <= threshold < ZERO:
        return np.float32(ZERO)
    if -ZERO <= threshold < 0.0:
        return _below(np.float32(-ZERO))
    with np.errstate(over="ignore"):  # LightGBM writes 1e300 for infinity
        nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else _below(nearest)


def _below(value: np.float32) -> np.float32:
    """The next smaller one."""
    return np.float32(np.nextafter(value, np.float32(-np.inf)))


def _fields(block: str) -> dict[str, str]:
    """The `name=value` lines of one part of the text."""
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
