"""Early stopping, checkpoints, and what the model learns on the planted world."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.errors import ConfigError
from recsys.features.prediction_points import PredictionPoints
from recsys.features.state import StateBatch
from recsys.retrieval.two_tower import TwoTower, encode_states
from recsys.retrieval.two_tower_training import TowerSettings, Trainer, batches_of_alike, validation_ndcg
from tests.planted import (
    N_ITEMS,
    N_RATED,
    TOWER,
    TWINS,
    planted_catalogue,
    planted_histories,
    planted_split,
    planted_tables,
)

SHORT = replace(TOWER, dim=8, epochs=4, max_length=8, batch_events=200)


def trainer(settings: TowerSettings = SHORT, checkpoint: Path | None = None, cutoff: int | None = None) -> Trainer:
    cutoff = planted_split().end if cutoff is None else cutoff
    return Trainer(planted_catalogue(), planted_histories(), cutoff, settings, checkpoint)


def weights(model: TwoTower) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.parametrize("negatives", ["full", "sampled"])
def test_the_same_seed_gives_the_same_model_and_another_seed_another(negatives: str) -> None:
    settings = replace(SHORT, epochs=2, negatives=negatives, uniform_negatives=16)
    first, second = trainer(settings), trainer(settings)
    assert_equal(weights(first.fit()), weights(second.fit()))
    assert first.log.losses == second.log.losses
    assert first.log.best_epoch == 2
    other = trainer(replace(settings, seed=8))
    other.fit()
    assert other.log.losses != first.log.losses


def test_events_after_the_cutoff_change_nothing() -> None:
    """The leak test: a history cut by hand at T1 gives the very same model."""
    cutoff = planted_split().t1
    events = planted_tables().events
    cut = type(planted_histories()).from_tables(
        planted_catalogue(), events[events["timestamp"] <= cutoff], planted_tables().users
    )
    settings = replace(SHORT, epochs=2)
    whole = trainer(settings, cutoff=cutoff).fit()
    assert_equal(weights(Trainer(planted_catalogue(), cut, cutoff, settings).fit()), weights(whole))


def scripted(values: list[float]) -> Callable[[TwoTower], float]:
    """A validation that says what it is told to, one value a call."""
    left = iter(values)
    return lambda _model: next(left)


@pytest.mark.parametrize("validated", [False, True])
def test_stopped_and_continued_equals_uninterrupted_bit_for_bit(validated: bool, tmp_path: Path) -> None:
    script = [0.1, 0.3, 0.2, 0.4] if validated else []

    def validate(values: list[float]) -> Callable[[TwoTower], float] | None:
        return scripted(values) if validated else None

    whole = trainer()
    expected = weights(whole.fit(validate(script)))
    path = tmp_path / "deep" / "tower.checkpoint"
    trainer(checkpoint=path).fit(validate(script[:2]), epochs=2)
    said: list[str] = []
    continued = trainer(checkpoint=path)
    assert_equal(weights(continued.fit(validate(script[2:]), report=said.append)), expected)
    assert said[0] == "two-tower: continuing after epoch 2"
    assert said[1].startswith("two-tower epoch 3/4: loss ")
    assert continued.log.losses == whole.log.losses
    assert continued.log.validation == whole.log.validation
    assert continued.log.best_epoch == 4
    assert len(continued.log.seconds) == 4
    assert [p.name for p in path.parent.iterdir()] == ["tower.checkpoint"]


def test_a_checkpoint_of_another_training_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "tower.checkpoint"
    trainer(replace(SHORT, epochs=2, seed=9), path).fit()
    said: list[str] = []
    assert_equal(
        weights(trainer(replace(SHORT, epochs=2), path).fit(report=said.append)),
        weights(trainer(replace(SHORT, epochs=2)).fit()),
    )
    assert not any("continuing" in line for line in said)


def test_early_stopping_waits_patience_epochs_and_keeps_the_best() -> None:
    settings = replace(SHORT, epochs=9, patience=2)
    stopped = trainer(settings)
    model = stopped.fit(scripted([0.1, 0.3, 0.3, 0.2, 0.9, 0.9]))
    assert stopped.log.validation == [0.1, 0.3, 0.3, 0.2], "an equal value is no better one"
    assert stopped.log.best_epoch == 2
    assert not model.training
    assert_equal(weights(model), weights(trainer(settings).fit(epochs=2)))


def test_a_training_that_stopped_early_stays_stopped_when_it_is_run_again(tmp_path: Path) -> None:
    settings = replace(SHORT, epochs=9, patience=2)
    path = tmp_path / "tower.checkpoint"
    expected = weights(trainer(settings, path).fit(scripted([0.4, 0.1, 0.2])))
    again = trainer(settings, path)
    assert_equal(weights(again.fit(scripted([]))), expected)
    assert (len(again.log.losses), again.log.best_epoch) == (3, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 10, "heads": 3}, "dim 10 cannot be divided among 3 heads"),
        ({"epochs": 0}, "epochs and batch_events must be at least 1"),
        ({"batch_events": 0}, "epochs and batch_events must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TowerSettings(**changes)  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU; use --device cpu"):
        TowerSettings(device="cuda:0")


# --- validation


def contexts_after(moment: int) -> tuple[StateBatch, np.ndarray, np.ndarray]:
    events = planted_tables().events
    contexts = PredictionPoints.from_events(events[events["timestamp"] > moment])
    states = planted_histories().states_at(contexts.user_id, contexts.timestamp)
    return states, contexts.event_context, planted_catalogue().to_idx(contexts.event_item_id)


def test_validation_is_ndcg_by_loops() -> None:
    model = trainer(replace(SHORT, epochs=1)).fit()
    states, context, target = contexts_after(planted_split().t1)
    assert len(context) > len(states), "some moments have several targets"
    users, items = encode_states(model, states), model.item_vectors().detach().numpy()
    gains = []
    for c, t in zip(context, target, strict=True):
        unseen = [i for i in range(N_ITEMS) if i not in set(states.seen_idx[c])]
        best = sorted(unseen, key=lambda i: -float(items[i] @ users[c]))[:10]
        gains.append(1 / np.log2(best.index(t) + 2) if t in best else 0.0)
    assert validation_ndcg(model, states, context, target) == pytest.approx(np.mean(gains), abs=1e-6)
    shuffled = np.random.default_rng(0).permutation(len(context))
    assert validation_ndcg(model, states, context[shuffled], target[shuffled]) == pytest.approx(np.mean(gains))


# --- what is learnt


def test_an_unrated_item_lies_nearest_to_its_twin_in_content() -> None:
    model = trainer(replace(TOWER, id_dropout=0.8)).fit()
    vectors = model.item_vectors().detach().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit[:N_RATED].T
    for unrated, twin in TWINS.items():
        assert int(similarity[unrated].argmax()) == twin


def test_batches_hold_every_window_once_and_like_lengths_together() -> None:
    lengths = np.array([5, 1, 9, 5, 1, 9, 5, 1])
    batches = batches_of_alike(lengths, 10, np.random.default_rng(3))
    assert sorted(np.concatenate(batches).tolist()) == list(range(8))
    widths = sorted((lengths[rows].min(), lengths[rows].max()) for rows in batches)
    assert widths == [(1, 5), (5, 5), (9, 9), (9, 9)]
