"""The compiled loops against plain NumPy, bit for bit. Stage: retrieval. Absent: what the numbers mean."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recsys.retrieval import kernels
from recsys.retrieval.compiling import OPTIONS, Compiled, compiled, reads
from recsys.retrieval.kernels import (
    add_dense_rows,
    add_shares,
    add_sparse_rows,
    best_of_row,
    find_ranks,
    share_by_second,
)

ALL = [value for value in vars(kernels).values() if isinstance(value, Compiled)]
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 1e-40, -1e-40, float(np.float32(3.4e38)), np.inf, -np.inf, np.nan])
ANY = st.floats(width=32)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Before hypothesis looks at the clock."""
    for kernel in ALL:
        assert kernel.machine_code


@st.composite
def rows_of_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """(N,) scores with ties and without, seen row numbers, and a k that may exceed N."""
    n = draw(st.integers(0, 40))
    scores = draw(arrays(np.float32, n, elements=draw(st.sampled_from([TIED, ANY]))))
    seen = np.flatnonzero(draw(arrays(bool, n)))
    return scores, seen, draw(st.integers(1, 45))


def bits(values: np.ndarray) -> list[int]:
    return np.ascontiguousarray(values).view(np.int32).ravel().tolist()


@pytest.mark.parametrize("no_score", [0.0, -np.inf])
@given(given_row=rows_of_scores())
def test_the_best_are_those_of_a_stable_sort(no_score: float, given_row: tuple[np.ndarray, np.ndarray, int]) -> None:
    scores, seen, k = given_row
    before = scores.copy()
    item_idx, best = np.empty(k, np.int64), np.empty(k, np.float32)
    best_of_row(scores, seen, no_score, item_idx, best)
    said = np.setdiff1d(np.flatnonzero((scores != no_score) & ~np.isnan(scores)), seen)
    expected = said[np.argsort(-scores[said], kind="stable")][:k]
    n = len(expected)
    assert item_idx.tolist() == expected.tolist() + [-1] * (k - n)
    assert bits(best[:n]) == bits(scores[expected])
    assert np.isneginf(best[n:]).all()
    assert bits(scores) == bits(before)


@pytest.mark.parametrize("k", [1, 300, 3_000, 5_000])
def test_the_best_of_many(k: int) -> None:
    """Normal numbers spread over the first digit of a key; those of one binade share it, so that all are sorted."""
    rng = np.random.default_rng(k)
    for scores in (rng.standard_normal(4_000), 1 + rng.random(4_000), np.full(4_000, 2.0)):
        item_idx, best = np.empty(k, np.int64), np.empty(k, np.float32)
        row = scores.astype(np.float32)
        best_of_row(row, np.arange(50), 0.0, item_idx, best)
        expected = 50 + np.argsort(-row[50:], kind="stable")[:k]
        assert item_idx[: len(expected)].tolist() == expected.tolist()
        assert bits(best[: len(expected)]) == bits(row[expected])
        assert (item_idx[len(expected) :] == -1).all()


@st.composite
def lists_of_retrievers(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """N and (S, k) lists of distinct items, filled up with -1."""
    n, k = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    tops = np.full((draw(st.integers(1, 6)), k), -1)
    for top in tops:
        items = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=k))
        top[: len(items)] = items
    return n, tops


@given(lists_of_retrievers(), st.integers(0, 2**32 - 1))
def test_shares_are_added_in_double_precision_and_kept_in_single(
    given_lists: tuple[int, np.ndarray], seed: int
) -> None:
    n, tops = given_lists
    rng = np.random.default_rng(seed)
    shares = rng.random(tops.shape)
    rrf_score = rng.random(n).astype(np.float32)
    expected = rrf_score.copy()
    for top, share in zip(tops, shares, strict=True):
        found = top[top >= 0]
        expected[found] += share[: len(found)]
    add_shares(tops, shares, rrf_score)
    assert bits(rrf_score) == bits(expected)


@given(lists_of_retrievers(), st.data())
def test_ranks_are_the_places_in_each_list(given_lists: tuple[int, np.ndarray], data: st.DataObject) -> None:
    n, tops = given_lists
    items = data.draw(st.lists(st.integers(0, n - 1), unique=True))
    candidates = np.array([*items, -1, -1])
    ranks = np.zeros((len(tops), len(candidates)), dtype=np.int32)
    find_ranks(tops, candidates, np.empty(n, dtype=np.int64), ranks)
    place = [{item: rank for rank, item in enumerate(top, 1) if item >= 0} for top in tops.tolist()]
    assert ranks.tolist() == [[of.get(item, 0) for item in candidates.tolist()] for of in place]


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 9))
def test_sparse_rows_are_added_entry_by_entry(seed: int, users: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 20))
    table = sp.random(n, n, density=rng.random(), format="csr", dtype=np.float32, random_state=rng)
    history = rng.integers(-1, n, (users, length + 3))[:, 3:]  # a part of a larger array
    weights = np.broadcast_to(rng.standard_normal(length).astype(np.float32), (users, length))  # may not be written
    out = np.zeros((users, n), dtype=np.float32)
    add_sparse_rows(table.indptr, table.indices, table.data, history, weights, out)
    expected = np.zeros_like(out)
    for user, step in zip(*np.nonzero(history >= 0), strict=True):
        entries = slice(table.indptr[history[user, step]], table.indptr[history[user, step] + 1])
        np.add.at(expected[user], table.indices[entries], table.data[entries] * weights[user, step])
    assert bits(out) == bits(expected)


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 9))
def test_dense_rows_are_added_row_by_row(seed: int, users: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    columns = np.flatnonzero(rng.random(n) < 0.7)
    table = rng.standard_normal((len(columns), len(columns))).astype(np.float32)
    rows = rng.integers(-1, len(columns), (users, length))
    weights = rng.standard_normal((users, length)).astype(np.float32)
    out = np.zeros((users, n), dtype=np.float32)
    add_dense_rows(table, columns, rows, weights, np.empty(len(columns), dtype=np.float32), out)
    expected = np.zeros_like(out)
    for user, step in zip(*np.nonzero(rows >= 0), strict=True):
        expected[user, columns] += table[rows[user, step]] * weights[user, step]
    assert bits(out) == bits(expected)


def shared_by_numpy(item_idx: np.ndarray, timestamps: np.ndarray, by_step: np.ndarray) -> np.ndarray:
    weights = np.zeros(item_idx.shape, dtype=np.float32)
    for row, items in enumerate(item_idx):
        first = len(items) - np.count_nonzero(items >= 0)
        _, second = np.unique(timestamps[row, first:], return_inverse=True)
        if len(second):
            weights[row, first:] = (np.bincount(second, by_step[first:]) / np.bincount(second))[second]
    return weights


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(1, 12))
def test_events_of_one_second_share_the_mean(seed: int, users: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    events = rng.integers(0, length + 1, users)
    present = np.arange(length) >= length - events[:, None]
    timestamps = np.sort(rng.integers(0, length, (users, length)), axis=1)
    by_step = (1.0 + np.arange(length - 1, -1, -1)) ** -rng.random()
    weights = np.zeros((users, length), dtype=np.float32)
    share_by_second(np.where(present, 5, -1), timestamps, by_step, weights)
    assert bits(weights) == bits(shared_by_numpy(np.where(present, 5, -1), timestamps, by_step))


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: kernel.function.__name__)
def test_every_kernel_compiles_without_a_warning(kernel: Compiled) -> None:
    from numba import njit

    assert len(ALL) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        njit(kernel.signature, **OPTIONS)(kernel.function)


def test_arrays_that_may_be_written_and_those_that_may_not_are_one_type() -> None:
    """So nothing is compiled during a request."""
    scores = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    hidden = np.array([1])
    for writeable in (True, False):
        for array in (scores, hidden):
            array.flags.writeable = writeable
        item_idx, best = np.empty(2, np.int64), np.empty(2, np.float32)
        best_of_row(scores, hidden, -np.inf, item_idx, best)
        assert item_idx.tolist() == [2, 0]
    assert len(kernels.sort_best.machine_code.signatures) == 1  # type: ignore[attr-defined]
    assert kernels.sort_best.machine_code.targetoptions["nogil"]  # type: ignore[attr-defined]


def test_arguments_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        add_shares(np.zeros((1, 1), np.int64), np.zeros((1, 1)), np.zeros(1))  # float64 instead of float32


def test_nothing_is_compiled_before_the_first_call() -> None:
    code = "import sys, recsys.retrieval.merge; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def doubled(values: np.ndarray) -> None:
    for i in range(len(values)):
        values[i] *= 2


@pytest.mark.parametrize(
    "error", [RuntimeError("cannot cache function: no locator"), OSError("disk full"), EOFError("cut off")]
)
def test_where_machine_code_cannot_be_kept_it_is_made_all_the_same(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import numba

    asked: list[bool] = []

    def njit(signature: str, *, cache: bool = False, **options: object) -> object:
        asked.append(cache)
        if cache:
            raise error
        return numba.njit(signature, **options)

    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(njit=njit))
    values = np.array([1.0, 2.5])
    with caplog.at_level(logging.WARNING, "recsys.retrieval.compiling"):
        compiled("void(float64[::1])")(doubled)(values)
    assert values.tolist() == [2.0, 5.0]
    assert asked == [True, False]
    assert f"the machine code of doubled is not kept, and made at each start: {error}" in caplog.text


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from loops import total
print(total(np.arange(5.0)))
print(sum(total.machine_code.stats.cache_hits.values()), flush=True)
"""
FULL_DISK = """
from numba.core.caching import IndexDataCacheFile

def full(*args):
    raise OSError("no space left")

IndexDataCacheFile._save_data = full
"""
LOOPS = """
from recsys.retrieval.compiling import compiled

@compiled("float64(float64[::1])")
def total(values):
    out = 0.0
    for i in range(len(values)):
        out += values[i]
    return out
"""


def run_together(folder: Path, processes: int) -> Sequence[str]:
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes
    return said


def test_processes_that_compile_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """And leave what the next one reads."""
    (tmp_path / "loops.py").write_text(LOOPS)
    for said in run_together(tmp_path, 2):
        assert said.split()[0] == "10.0"
    assert run_together(tmp_path, 1) == ["10.0\n1\n"]


def test_new_retriever_never_runs_old_code(tmp_path: Path) -> None:
    """Also where the new code could not be written, as on a full disk: numba has noted the new retriever by then."""
    retriever = tmp_path / "loops.py"
    retriever.write_text(LOOPS)
    assert run_together(tmp_path, 1) == ["10.0\n0\n"]
    retriever.write_text(LOOPS.replace("+= values[i]", "+= values[i] + 1"))
    program = PROGRAM.replace("from loops", FULL_DISK + "from loops")
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    assert run_together(tmp_path, 1)[0].split()[0] == "15.0"


def test_an_index_that_a_crash_left_empty_keeps_nobody_from_starting(tmp_path: Path) -> None:
    (tmp_path / "loops.py").write_text(LOOPS)
    run_together(tmp_path, 1)
    (index,) = (tmp_path / "__pycache__").glob("*.nbi")
    index.write_bytes(b"")
    assert run_together(tmp_path, 1) == ["10.0\n0\n"]


def test_reads_names_a_type_that_numba_knows() -> None:
    from numba.core.sigutils import normalize_signature

    (argument,), _ = normalize_signature(f"void({reads('int64', 2, 'A')})")
    assert (argument.ndim, argument.layout, argument.mutable, str(argument.dtype)) == (2, "A", False, "int64")
