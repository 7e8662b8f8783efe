"""The model's inside: who sees what. Stage: retrieval. Absent: training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.artefacts import read_json, write_json
from recsys.errors import BundleError
from recsys.features.catalogue import Catalogue
from recsys.retrieval.two_tower import TowerShape, TwoTower, encode_states
from recsys.retrieval.two_tower_source import TwoTowerSource
from tests.planted import DAY, N_MOVIES, START, planted_catalogue, planted_histories, planted_sources, planted_tables

LENGTH = 10


def shape(**changes: object) -> TowerShape:
    catalogue = planted_catalogue()
    base = TowerShape(
        n_items=N_MOVIES,
        n_genres=len(catalogue.genre_names),
        n_words=len(catalogue.vocabulary),
        profile_sizes=catalogue.profiles.sizes,
        dim=8,
        layers=2,
        heads=2,
        max_length=LENGTH,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def model(seed: int = 0, **changes: object) -> TwoTower:
    """Random weights everywhere, also where a fresh model has zeros that would hide a path."""
    torch.manual_seed(seed)
    made = TwoTower(shape(**changes), planted_catalogue()).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def tokens(b: int = 3, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    return (
        torch.from_numpy(rng.integers(0, N_MOVIES, (b, length))),
        torch.from_numpy(rng.integers(1, 11, (b, length))),
        torch.from_numpy(rng.integers(0, 15, (b, length))),
        torch.from_numpy(np.stack([np.arange(b) % 3, np.arange(b) % 8, np.arange(b) % 3], axis=1)),
    )


def test_there_is_a_hidden_vector_before_every_token_and_after_the_last() -> None:
    assert model().encode(*tokens()).shape == (3, LENGTH + 1, 8)


@pytest.mark.parametrize("which", range(3))
def test_a_later_token_changes_no_earlier_hidden_vector(which: int) -> None:
    made = model()
    before = made.encode(*tokens())
    for position in range(LENGTH):
        changed = [t.clone() for t in tokens()]
        changed[which][:, position] = (changed[which][:, position] + 1) % 10
        after = made.encode(*changed)
        torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1], rtol=1e-5, atol=1e-6)
        assert (after[:, position + 1 :] - before[:, position + 1 :]).abs().amax(dim=-1).min() > 1e-5


def test_the_profile_reaches_every_position_and_no_user_reaches_another() -> None:
    made = model()
    before = made.encode(*tokens())
    item_idx, ratings, gaps, profile = tokens()
    profile[1, 0] = 2
    after = made.encode(item_idx, ratings, gaps, profile)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-5, atol=1e-6)
    assert (after[1] - before[1]).abs().amax(dim=-1).min() > 1e-5


def test_padding_on_the_left_changes_nothing() -> None:
    made = model()
    item_idx, ratings, gaps, profile = (t[:, :6] if t.ndim == 2 and t.shape[1] == LENGTH else t for t in tokens())
    short = made.encode(item_idx, ratings, gaps, profile)
    empty = torch.zeros(3, 4, dtype=torch.int64)
    padded = made.encode(
        torch.cat([empty - 1, item_idx], 1), torch.cat([empty, ratings], 1), torch.cat([empty, gaps], 1), profile
    )
    # distances to the start token grow with the padding, so make its bias flat to compare the rest
    with torch.no_grad():
        for block in made.blocks:
            block.distance_bias.copy_(block.distance_bias[:, :1].expand_as(block.distance_bias))
    flat = made.encode(item_idx, ratings, gaps, profile)
    flat_padded = made.encode(
        torch.cat([empty - 1, item_idx], 1), torch.cat([empty, ratings], 1), torch.cat([empty, gaps], 1), profile
    )
    torch.testing.assert_close(flat_padded[:, 5:], flat[:, 1:], rtol=1e-5, atol=1e-5)
    return short, padded


def test_item_vectors_are_id_plus_content() -> None:
    made, catalogue = model(), planted_catalogue()
    items = made.items
    vectors = made.item_vectors()
    assert vectors.shape == (N_MOVIES, 8)
    for row in (0, 7, 34, 38):
        level = int(min(max((catalogue.decades[row] * 10 - 1900) / 5, 0), 29))
        words = [w for w in catalogue.words[row] if w]
        expected = items.ids.weight[row] + items.year.weight[level] + items.genre.bias
        expected = expected + items.genre.weight @ torch.from_numpy(catalogue.genres[row])
        if words:
            expected = expected + items.word.weight[words].mean(dim=0)
        torch.testing.assert_close(vectors[row], expected, rtol=1e-5, atol=1e-5)


def test_id_dropout_drops_whole_ids_while_training_only() -> None:
    made = model(id_dropout=0.5)
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


def test_a_catalogue_without_genres_still_gives_vectors() -> None:
    movies = planted_tables().movies.assign(genres=[[]] * N_MOVIES)
    catalogue = Catalogue.from_tables(movies, planted_tables().users)
    made = TwoTower(shape(n_genres=0), catalogue)
    assert made.items.genre is None
    assert made.item_vectors().shape == (N_MOVIES, 8)


def test_states_are_encoded_as_the_tokens_that_they_hold() -> None:
    """The served vector equals the hand-made one: last tokens, gaps, stars, profile, time since the last event."""
    made, h = model(), planted_histories()
    states = h.states_at(h.user_ids[:8], START + 400 * DAY)
    vectors = encode_states(made, states)
    assert vectors.shape == (8, 8)
    from recsys.retrieval.two_tower import gap_levels, rating_levels

    for b in range(8):
        items, times = states.item_idx[b, -LENGTH:], states.timestamps[b, -LENGTH:]
        gaps = np.append(0, gap_levels(np.diff(times)))
        hidden = made.encode(
            torch.from_numpy(items)[None],
            torch.from_numpy(rating_levels(states.ratings[b, -LENGTH:]))[None],
            torch.from_numpy(gaps)[None],
            torch.from_numpy(states.profile[b])[None],
        )
        since = torch.from_numpy(gap_levels(np.array([states.now[b] - times[-1]])))
        expected = made.query(hidden[:, -1], since)
        np.testing.assert_allclose(vectors[b], expected[0].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_somebody_cold_is_read_at_the_start_token() -> None:
    made = model()
    cold = planted_histories().states_at(np.array([999]), START)
    empty = torch.zeros(1, 0, dtype=torch.int64)
    hidden = made.encode(empty, empty, empty, torch.from_numpy(cold.profile))
    expected = made.query(hidden[:, 0], torch.zeros(1, dtype=torch.int64))
    np.testing.assert_allclose(encode_states(made, cold), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_towers_of_another_catalogue_are_refused(tmp_path: Path) -> None:
    planted_sources()[0].save(tmp_path)
    stored = read_json(tmp_path / "towers.json")
    write_json(tmp_path / "towers.json", {**stored, "n_items": 41})
    with pytest.raises(BundleError, match="the towers know 41 movies, the catalogue holds 40"):
        TwoTowerSource.load(tmp_path, planted_catalogue())
