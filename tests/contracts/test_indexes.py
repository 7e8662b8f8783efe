"""The contract of every index kind, against brute force in NumPy."""

from pathlib import Path

import numpy as np
import pytest

from recsys.errors import BundleError, ConfigError
from recsys.retrieval import index as index_module
from recsys.retrieval.index import Kind, VectorIndex
from tests.contracts.no_code import assert_no_pickle

N, D, B = 3_000, 16, 30


def vectors(n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


QUERIES = vectors(B, 1)


def brute_force(items: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ items.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return best, np.take_along_axis(scores, best, axis=1)


@pytest.fixture(scope="module", params=["exact", "ivf"])
def index(request: pytest.FixtureRequest) -> VectorIndex:
    return VectorIndex.build(vectors(), request.param)


@pytest.mark.parametrize("k", [1, 10, 300])
def test_neighbours_against_brute_force(index: VectorIndex, k: int) -> None:
    expected, expected_scores = brute_force(vectors(), QUERIES, k)
    found, scores = index.search(QUERIES, k)
    assert found.shape == scores.shape == (B, k)
    assert found.dtype == np.int64
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    if index.kind == "exact":
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-5)
    recall = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, expected, strict=True)])
    assert recall >= {"exact": 1.0, "ivf": 0.95}[index.kind]
    products = np.einsum("bd,bkd->bk", QUERIES, vectors()[found])
    np.testing.assert_allclose(scores, products, rtol=1e-4, atol=1e-4)


def test_measured_recall_is_the_share_of_the_exact_top(index: VectorIndex) -> None:
    report = index.measure(vectors(), QUERIES, at=50)
    expected, _ = brute_force(vectors(), QUERIES, 50)
    found, _ = index.search(QUERIES, 50)
    recall = np.mean([len(np.intersect1d(a, b)) / 50 for a, b in zip(found, expected, strict=True)])
    assert (report.kind, report.at, report.queries) == (index.kind, 50, B)
    assert report.recall == pytest.approx(recall)
    assert index.measure(vectors(), QUERIES, at=N + 1).at == N


def test_saved_and_loaded_it_answers_identically(index: VectorIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"index.{index.kind}.faiss"]
    assert_no_pickle(tmp_path)
    loaded = VectorIndex.load(tmp_path, vectors())
    assert loaded.kind == index.kind
    for before, after in zip(index.search(QUERIES, 40), loaded.search(QUERIES, 40), strict=True):
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_fewer_vectors_than_asked_for_are_padded_with_minus_1(kind: Kind) -> None:
    found, scores = VectorIndex.build(vectors(3), kind).search(QUERIES, 5)
    np.testing.assert_array_equal(found[:, :3], brute_force(vectors(3), QUERIES, 3)[0])
    assert (found[:, 3:] == -1).all()
    assert np.isneginf(scores[:, 3:]).all()


def test_auto_is_exact_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VectorIndex.build(vectors(100)).kind == "exact"
    monkeypatch.setattr(index_module, "EXACT_UP_TO", 99)
    assert VectorIndex.build(vectors(99)).kind == "exact"
    assert VectorIndex.build(vectors(100)).kind == "ivf"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown index kind 'flat'; choose auto, exact or ivf"):
        VectorIndex.build(vectors(10), "flat")  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [(), ("exact", "ivf")])
def test_a_folder_with_no_index_or_two_is_refused(kinds: tuple[Kind, ...], tmp_path: Path) -> None:
    for kind in kinds:
        VectorIndex.build(vectors(50), kind).save(tmp_path)
    with pytest.raises(BundleError, match=f"it holds {len(kinds)}"):
        VectorIndex.load(tmp_path, vectors(50))


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_an_index_of_other_vectors_is_refused(kind: Kind, tmp_path: Path) -> None:
    VectorIndex.build(vectors(200), kind).save(tmp_path)
    for other in (vectors(201), vectors(200)[:, :8], vectors(200)[::-1], vectors(200) + np.float32(1e-6)):
        with pytest.raises(BundleError, match="is the index of other vectors"):
            VectorIndex.load(tmp_path, other)


@pytest.mark.parametrize("content", [b"", b"no index"])
def test_a_file_that_is_no_index_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "index.exact.faiss").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read"):
        VectorIndex.load(tmp_path, vectors(3))
