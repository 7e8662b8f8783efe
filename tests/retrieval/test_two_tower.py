"""The model's inside: who sees what."""

import numpy as np
import pytest
import torch

from recsys.retrieval.tower_inputs import WindowCutter
from recsys.retrieval.two_tower import encode_states
from tests.planted import N_ITEMS, planted_catalogue, planted_histories
from tests.retrieval.histories import tower

LENGTH = 10
SMALL = {"dim": 8, "max_length": LENGTH}


def tokens(b: int = 3, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    return (
        torch.from_numpy(rng.integers(0, N_ITEMS, (b, length))),
        torch.from_numpy(rng.integers(1, 11, (b, length))),
        torch.from_numpy(rng.integers(0, 15, (b, length))),
        torch.from_numpy(np.stack([np.arange(b) % 3, np.arange(b) % 8, np.arange(b) % 3], axis=1)),
    )


@pytest.mark.parametrize("which", range(3))
def test_a_later_token_changes_no_earlier_hidden_vector(which: int) -> None:
    made = tower(**SMALL)
    before = made.encode(*tokens())
    for position in range(LENGTH):
        changed = [t.clone() for t in tokens()]
        changed[which][:, position] = (changed[which][:, position] + 1) % 10
        after = made.encode(*changed)
        torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1], rtol=1e-5, atol=1e-6)
        assert (after[:, position + 1 :] - before[:, position + 1 :]).abs().amax(dim=-1).min() > 1e-5


def test_the_profile_reaches_every_position_and_no_user_reaches_another() -> None:
    made = tower(**SMALL)
    before = made.encode(*tokens())
    item_idx, ratings, gaps, profile = tokens()
    profile[1, 0] = 2
    after = made.encode(item_idx, ratings, gaps, profile)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-5, atol=1e-6)
    assert (after[1] - before[1]).abs().amax(dim=-1).min() > 1e-5


def test_tokens_carry_no_absolute_position_but_their_distance_to_the_start() -> None:
    """Padding in front moves only the start token away: with a flat bias nothing changes."""
    made = tower(**SMALL)
    item_idx, ratings, gaps, profile = (t[:, :6] for t in tokens())
    empty = torch.zeros(3, 4, dtype=torch.int64)
    padded = (torch.cat([empty - 1, item_idx], 1), torch.cat([empty, ratings], 1), torch.cat([empty, gaps], 1), profile)
    assert (made.encode(*padded)[:, 5:] - made.encode(item_idx, ratings, gaps, profile)[:, 1:]).abs().max() > 1e-4
    with torch.no_grad():
        for block in made.blocks:
            block.distance_bias.zero_()
    flat = made.encode(item_idx, ratings, gaps, profile)
    torch.testing.assert_close(made.encode(*padded)[:, 5:], flat[:, 1:], rtol=1e-5, atol=1e-5)


def test_item_vectors_are_id_plus_content() -> None:
    made, catalogue = tower(**SMALL), planted_catalogue()
    items = made.items
    vectors = made.item_vectors()
    assert vectors.shape == (N_ITEMS, 8)
    for row in (0, 7, 34, 38):
        level = int(min(max((catalogue.decades[row] * 10 - 1900) / 5, 0), 29))
        words = [w for w in catalogue.words[row] if w]
        expected = items.ids.weight[row] + items.year.weight[level] + items.genre.bias
        expected = expected + items.genre.weight @ torch.from_numpy(catalogue.genres[row])
        if words:
            expected = expected + items.word.weight[words].mean(dim=0)
        torch.testing.assert_close(vectors[row], expected, rtol=1e-5, atol=1e-5)


def test_id_dropout_drops_whole_ids_while_training_only() -> None:
    made = tower(**SMALL, id_dropout=0.5)
    everything = made.item_vectors()
    made.train()
    torch.manual_seed(0)
    dropped = everything - made.item_vectors()
    is_id = (dropped - made.items.ids.weight).abs().amax(dim=1) < 1e-5
    is_zero = dropped.abs().amax(dim=1) < 1e-5
    assert (is_id | is_zero).all()
    assert 5 < is_id.sum() < 35
    with torch.no_grad():
        torch.testing.assert_close(made.eval().item_vectors(), everything)


def test_a_state_and_a_training_query_give_the_same_user_vector() -> None:
    """Every query of uncut windows against the state at the moment of its target: no skew between the two ways."""
    made, h = tower(**SMALL | {"max_length": 16}), planted_histories()
    cutter = WindowCutter(h, 10**10, 16)
    bounds, users = cutter.cut(np.random.default_rng(0))
    w = cutter.windows(bounds, users)
    hidden = made.encode(*(torch.from_numpy(a) for a in (w.item_idx, w.ratings, w.gaps, w.profile)))
    known = hidden[torch.from_numpy(w.query_row), torch.from_numpy(w.query_position)]
    trained = made.query(known, torch.from_numpy(w.query_gap)).detach().numpy()
    moment_of = {(u, i): t for u in users for i, t in _events(u)}
    moments = [0] * len(trained)
    for query, target in zip(w.target_query, w.target_item, strict=True):
        moments[query] = moment_of[users[w.query_row[query]], target]
    served = encode_states(made, h.states_at(h.user_ids[users[w.query_row]], np.array(moments)))
    np.testing.assert_allclose(served, trained, rtol=1e-4, atol=1e-4)


def _events(user: int) -> list[tuple[int, int]]:
    h = planted_histories()
    mine = slice(h.offset[user], h.offset[user + 1])
    return list(zip(h.item_idx[mine].tolist(), h.timestamps[mine].tolist(), strict=True))
