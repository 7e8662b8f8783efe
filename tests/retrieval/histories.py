"""Histories by hand, and a tower of random weights."""

from dataclasses import replace

import numpy as np
import torch

from recsys.features.state import StateBatch
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.tower_inputs import TowerShape
from recsys.retrieval.two_tower import TwoTower
from tests.planted import N_ITEMS, START, planted_catalogue, planted_histories


def state(items: list[int], times: list[int] | None = None) -> StateBatch:
    """One user with this history, oldest first."""
    cold = planted_histories().states_at(np.array([-1]), START)
    item_idx, timestamps = cold.item_idx.copy(), cold.timestamps.copy()
    if items:
        item_idx[0, -len(items) :] = items
        timestamps[0, -len(items) :] = times if times is not None else np.arange(1, len(items) + 1)
    return replace(cold, item_idx=item_idx, timestamps=timestamps, seen_idx=[np.unique(np.array(items, dtype=int))])


def every(retriever: Retriever, states: StateBatch, n: int) -> np.ndarray:
    """(B, n) scores of the first n items."""
    return retriever.answer(states).at(np.broadcast_to(np.arange(n), (len(states), n)))


def tower(**changes: object) -> TwoTower:
    """Random weights everywhere, also where a fresh model has zeros that would hide a path."""
    catalogue = planted_catalogue()
    sizes = N_ITEMS, len(catalogue.genre_names), len(catalogue.vocabulary), catalogue.profile_sizes
    shape = TowerShape(*sizes, **({"dim": 16} | changes))
    torch.manual_seed(3)
    made = TwoTower(shape, catalogue).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made
