"""The user tower in NumPy against torch. What the model learns is in `test_two_tower`."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from recsys.bundle import save_retrievers
from recsys.features.state import HISTORY_LENGTH, StateBatch
from recsys.retrieval.tower_inputs import GAP_EDGES_S, gap_levels, rating_levels, tokens_of
from recsys.retrieval.two_tower import TwoTower, encode_states
from recsys.retrieval.two_tower_retriever import TowerEncoder, gelu
from tests.planted import N_ITEMS, planted_catalogue, planted_histories, planted_retrievers
from tests.retrieval.histories import tower as model

USERS = 120
NOW = 2_000_000_000


def encoder(made: TwoTower) -> TowerEncoder:
    return TowerEncoder(*made.export())


def random_states(seed: int = 0) -> StateBatch:
    """Users of 0, 1, 2, 63 and 64 events and of every length between, with every profile, stars unknown for a tenth of
    the events, and spans that reach every gap level, the time since the last event among them."""
    rng = np.random.default_rng(seed)
    cold = planted_histories().states_at(np.full(USERS, -1), NOW)
    item_idx, ratings, times = cold.item_idx.copy(), cold.ratings.copy(), cold.timestamps.copy()
    spans = np.append(GAP_EDGES_S, GAP_EDGES_S[1:] - 1)
    for row in range(USERS):
        count = [0, 1, 2, HISTORY_LENGTH - 1, HISTORY_LENGTH][row] if row < 5 else int(rng.integers(0, 65))
        if count:
            item_idx[row, -count:] = rng.integers(0, N_ITEMS, count)
            ratings[row, -count:] = rng.integers(1, 11, count) / 2 * (rng.random(count) > 0.1)
            times[row, -count:] = NOW - np.cumsum(rng.choice(spans, count))[::-1]
    sizes = planted_catalogue().profile_sizes
    profile = np.stack([rng.integers(0, size, USERS) for size in sizes], axis=1)
    return replace(cold, item_idx=item_idx, ratings=ratings, timestamps=times, profile=profile)


@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"layers": 3, "heads": 4}, {"layers": 0}, {"max_length": 10}])
def test_the_vectors_are_those_of_torch(changes: dict[str, object]) -> None:
    made = model(**changes)
    states = random_states()
    expected = encode_states(made, states)
    assert np.abs(expected).max() > 1.0
    np.testing.assert_allclose(encoder(made).encode(states), expected, rtol=1e-5, atol=1e-5)


def test_scores_of_attention_that_exp_cannot_hold_are_no_trouble() -> None:
    """exp overflows float32 above 88. The softmax is all but one-hot then; torch agrees to what float32 leaves of such
    sums."""
    made = model()
    with torch.no_grad():
        for block in made.blocks:
            block.qkv.weight.mul_(12.0)
    states = random_states()
    q = made.blocks[0].qkv(torch.nn.functional.layer_norm(made.item_vectors(), (16,)))[:, :16]
    assert (q.norm(dim=1).max() ** 2 / np.sqrt(8)).item() > 200
    np.testing.assert_allclose(encoder(made).encode(states), encode_states(made, states), rtol=1e-3, atol=1e-3)


def test_gelu_is_x_times_the_normal_distribution_function() -> None:
    x = np.linspace(-12, 12, 100_001).astype(np.float32)[None]
    np.testing.assert_allclose(gelu(x), x * ndtr(x.astype(np.float64)), rtol=0, atol=8e-7)
    assert gelu(np.float32([[-100.0, 0.0, 100.0]])).tolist() == [[0.0, 0.0, 100.0]]


def test_the_tokens_of_a_state_worked_out_by_hand() -> None:
    """Three events, 90 s and two days apart, read an hour later; the first of them is outside of two tokens."""
    cold = planted_histories().states_at(np.array([-1]), NOW)
    item_idx, ratings, times = cold.item_idx.copy(), cold.ratings.copy(), cold.timestamps.copy()
    item_idx[0, -3:], ratings[0, -3:] = [7, 5, 9], [4.5, 0.0, 0.5]
    times[0, -3:] = NOW - 3_600 - np.array([2 * 86_400 + 90, 2 * 86_400, 0])
    states = replace(cold, item_idx=item_idx, ratings=ratings, timestamps=times)
    tokens = tokens_of(states, 64)
    assert tokens.item_idx.tolist() == [[7, 5, 9]]
    assert tokens.ratings.tolist() == [[9, 0, 1]]
    assert tokens.gaps.tolist() == [[0, *gap_levels(np.array([90, 2 * 86_400])).tolist()]]
    assert tokens.query_gap.tolist() == gap_levels(np.array([3_600])).tolist()
    short = tokens_of(states, 2)
    assert (short.item_idx.tolist(), short.gaps.tolist()) == ([[5, 9]], [[0, tokens.gaps[0, 2]]])
    nobody = tokens_of(cold, 64)
    assert (nobody.item_idx.shape, nobody.count.tolist(), nobody.query_gap.tolist()) == ((1, 0), [0], [0])
    assert nobody.item_idx.dtype == np.int64


def test_levels_are_half_stars_and_buckets_of_time() -> None:
    assert rating_levels(np.float32([0.0, 0.5, 3.0, 5.0, 9.0])).tolist() == [0, 1, 6, 10, 10]
    assert gap_levels(np.array([-5, 0, 1, 4, 5, 14, 10**12])).tolist() == [0, 0, 2, 2, 3, 3, 14]


def test_what_is_exported_stays_when_the_model_trains_on() -> None:
    made, states = model(), random_states()
    exported = encoder(made)
    before = exported.encode(states)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    np.testing.assert_array_equal(exported.encode(states), before)


def test_retrievers_are_loaded_and_answer_without_torch(tmp_path: Path) -> None:
    """In a process of its own, because here torch is there already."""
    save_retrievers(planted_retrievers(), tmp_path / "retrievers")
    planted_catalogue().save(tmp_path)
    code = f"""
import sys
from pathlib import Path
from recsys.features.catalogue import Catalogue
from recsys.features.state import UserState, state_batch
from recsys.recommender import Recommender, RecommenderSettings
from recsys.retrieval.retrievers import load_retrievers
catalogue = Catalogue.load(Path({str(tmp_path)!r}))
retrievers = load_retrievers(Path({str(tmp_path / "retrievers")!r}), catalogue)
states = state_batch(catalogue, [UserState(1, (5, 8), (4.0, 3.0), (10, 20))], 30)
found = Recommender(catalogue, retrievers, None, RecommenderSettings(5, 5, 5)).retrieve(states)
print(len(retrievers), (found.item_idx >= 0).sum(), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "6 5 False\n"
