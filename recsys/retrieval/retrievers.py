"""Which retrievers there are: how each is fitted from events, and how it is loaded.

A new retriever needs a module that meets the contract of `retriever`, a name in `recsys.columns`, a line here and its
default settings (`pipelines.config`). Features, merging, bundle, replay and ablation follow from its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.arrays import IntArray
from recsys.columns import COVISITATION, POPULARITY, RETRIEVERS, TWO_TOWER
from recsys.errors import BundleError, ConfigError
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.retrieval.ease import Ease
from recsys.retrieval.ials import Ials
from recsys.retrieval.item_tables import Covisitation, ItemKnn
from recsys.retrieval.popularity import Popularity
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever

FITTED: Final[dict[str, Any]] = {c.name: c for c in (Ease, Ials, ItemKnn, Covisitation, Popularity)}


@dataclass(frozen=True)
class KnownEvents:
    """(E,) events with timestamp <= cutoff, ordered by (user, timestamp, item)."""

    user_idx: IntArray
    item_idx: IntArray
    timestamps: IntArray
    n_items: int
    cutoff: int

    @classmethod
    def through(cls, histories: Histories, n_items: int, cutoff: int) -> "KnownEvents":
        known = histories.timestamps <= cutoff
        owner = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offset))[known]
        return cls(owner, histories.item_idx[known], histories.timestamps[known], n_items, cutoff)


def fit_retriever(name: str, events: KnownEvents, settings: Mapping[str, Any]) -> Retriever:
    """The named retriever with the keyword arguments of its class's `fit`. Raises ConfigError for a name that none
    has; the two-tower model trains by itself (`two_tower_training`)."""
    if name not in FITTED:
        raise ConfigError(f"there is no retriever {name!r} to fit; known are {', '.join(FITTED)}")
    users, items, times, n_items = events.user_idx, events.item_idx, events.timestamps, events.n_items
    if name == COVISITATION:
        return Covisitation.fit(users, items, times, n_items, **settings)
    if name == POPULARITY:
        return Popularity.fit(items, times, n_items, cutoff=events.cutoff, **settings)
    fitted: Retriever = FITTED[name].fit(users, items, n_items, **settings)
    return fitted


def load_retrievers(folder: Path, catalogue: Catalogue) -> list[Retriever]:
    """Every retriever that `folder` holds, in the order of the vocabulary. Raises BundleError where there is none, and
    for one that is damaged or of another catalogue."""
    loaded: list[Retriever] = []
    for name in RETRIEVERS:
        if (path := folder / name).is_dir():
            loaded.append(TwoTowerRetriever.load(path, catalogue) if name == TWO_TOWER else FITTED[name].load(path))
    if not loaded:
        raise BundleError(f"{folder} holds no retriever; train again with `recsys train`")
    for retriever in loaded:
        if retriever.n_items != len(catalogue):
            raise BundleError(
                f"{folder}: {retriever.name} knows {retriever.n_items} items, the catalogue {len(catalogue)}; "
                "train again with `recsys train`"
            )
    return loaded
