"""Histories by hand."""

from dataclasses import replace

import numpy as np

from recsys.features.state import StateBatch
from recsys.retrieval.retriever import Retriever
from tests.planted import START, planted_histories


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
