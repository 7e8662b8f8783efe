"""What the index may not return. The rest of the contract is in `contracts/test_indexes`."""

import numpy as np
import pytest

from recsys.retrieval.index import VectorIndex

N, D, B, K = 2_000, 8, 12, 40
RNG = np.random.default_rng(5)
VECTORS = RNG.standard_normal((N, D)).astype(np.float32)
QUERIES = RNG.standard_normal((B, D)).astype(np.float32)


@pytest.fixture(scope="module", params=["exact", "ivf"])
def index(request: pytest.FixtureRequest) -> VectorIndex:
    return VectorIndex.build(VECTORS, request.param)


def shown(query: np.ndarray, hidden: np.ndarray, k: int) -> list[int]:
    scores = VECTORS @ query
    scores[hidden] = -np.inf
    return np.argsort(-scores, kind="stable")[: min(k, N - len(hidden))].tolist()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_what_is_hidden_is_never_returned_and_what_is_best_of_the_rest_is(index: VectorIndex, share: float) -> None:
    """Also where little is left to choose from."""
    rng = np.random.default_rng(9)
    hidden = [np.flatnonzero(rng.random(N) < share) for _ in range(B)]
    hidden[0] = np.argsort(-(VECTORS @ QUERIES[0]))[:300]  # the best ones; in no order
    found, scores = index.search(QUERIES, K, hidden)
    right = []
    for row in range(B):
        assert not set(found[row].tolist()) & set(hidden[row].tolist())
        expected = shown(QUERIES[row], hidden[row], K)
        right.append(len(set(found[row].tolist()) & set(expected)) / len(expected))
        if index.kind == "exact":
            assert found[row].tolist() == expected
            np.testing.assert_allclose(scores[row], VECTORS[expected] @ QUERIES[row], rtol=1e-5, atol=1e-5)
    assert np.mean(right) >= {"exact": 1.0, "ivf": 0.9}[index.kind]


def test_ivf_looks_into_the_more_lists_the_more_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lists of 51 where nothing is hidden: what is allowed by a narrow filter lies in any of them."""
    monkeypatch.setattr("recsys.retrieval.index.IVF_PROBES", 2)
    index = VectorIndex.build(VECTORS, "ivf")
    whole, _ = index.search(QUERIES, N)
    assert (whole >= 0).sum(axis=1).max() < N / 4
    left = np.random.default_rng(3).choice(N, N // 50, replace=False)
    found, _ = index.search(QUERIES, K, [np.setdiff1d(np.arange(N), left)] * B)
    for row in range(B):
        assert found[row].tolist() == shown(QUERIES[row], np.setdiff1d(np.arange(N), left), K)
