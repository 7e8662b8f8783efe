"""Which retrievers there are, besides the two-tower model: how each is fitted from events, and how it is loaded.

Stage: retrieval, offline (fit) and both tracks (load). In: `KnownEvents` and settings. Out: fitted `Retriever`s.
Absent: the two-tower model, which trains by itself (`two_tower_training`).

A new retriever needs a module that meets the contract of `retriever`, a name in `recsys.columns`, a line in each table
here and its default settings (`pipelines.config`). Features, merging, bundle, replay and ablation follow from its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.arrays import IntArray
from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, POPULARITY, RETRIEVERS, TWO_TOWER
from recsys.errors import BundleError
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.retrieval.covisitation import Covisitation
from recsys.retrieval.ease import Ease
from recsys.retrieval.ials import Ials
from recsys.retrieval.item_knn import ItemKnn
from recsys.retrieval.popularity import Popularity
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.two_tower_retriever import TwoTowerRetriever


@dataclass(frozen=True)
class KnownEvents:
    """Events with timestamp <= cutoff, ordered by (user, timestamp, item).

    user_idx, item_idx, timestamps   (E,)
    """

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


_FITS: Final[dict[str, Callable[[KnownEvents, Mapping[str, Any]], Retriever]]] = {
    EASE: lambda e, s: Ease.fit(e.user_idx, e.item_idx, e.n_items, **s),
    ITEM_KNN: lambda e, s: ItemKnn.fit(e.user_idx, e.item_idx, e.n_items, **s),
    IALS: lambda e, s: Ials.fit(e.user_idx, e.item_idx, e.n_items, **s),
    COVISITATION: lambda e, s: Covisitation.fit(e.user_idx, e.item_idx, e.timestamps, e.n_items, **s),
    POPULARITY: lambda e, s: Popularity.fit(e.item_idx, e.timestamps, e.n_items, cutoff=e.cutoff, **s),
}
_LOADS: Final[dict[str, Callable[[Path, Catalogue], Retriever]]] = {
    TWO_TOWER: TwoTowerRetriever.load,
    EASE: lambda folder, _: Ease.load(folder),
    ITEM_KNN: lambda folder, _: ItemKnn.load(folder),
    IALS: lambda folder, _: Ials.load(folder),
    COVISITATION: lambda folder, _: Covisitation.load(folder),
    POPULARITY: lambda folder, _: Popularity.load(folder),
}


def fit_retriever(name: str, events: KnownEvents, settings: Mapping[str, Any]) -> Retriever:
    """The named retriever with the keyword arguments of its `fit`."""
    return _FITS[name](events, settings)


def load_retrievers(folder: Path, catalogue: Catalogue) -> list[Retriever]:
    """Every retriever that `folder` holds, in the order of `columns.RETRIEVERS`. Raises BundleError where there is
    none, and for one of another catalogue: the loops of an answer check no row number."""
    found = [_LOADS[name](folder / name, catalogue) for name in RETRIEVERS if (folder / name).is_dir()]
    if not found:
        raise BundleError(f"{folder} holds no retriever; train again with `recsys train`")
    for retriever in found:
        if retriever.n_items != len(catalogue):
            raise BundleError(
                f"{folder}: {retriever.name} knows {retriever.n_items} items, the catalogue {len(catalogue)}; "
                "train again with `recsys train`"
            )
    return found
