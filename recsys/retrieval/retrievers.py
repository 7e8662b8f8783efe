"""Which retrievers there are: how each is fitted from events, and how it is loaded.

A new retriever needs a module that meets the contract of `retriever`, a name in `recsys.columns`, a line in RETRIEVERS
and its default settings (`pipelines.config`). Features, merging, bundle, replay and ablation follow from its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from recsys.arrays import IntArray
from recsys.columns import COVISITATION, EASE, IALS, ITEM_KNN, POPULARITY, TWO_TOWER
from recsys.errors import BundleError, ConfigError
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


@dataclass(frozen=True)
class RetrieverSpec:
    """fit: from events and the keyword arguments of the class's own `fit`; None for the two-tower model, which trains
    by itself (`two_tower_training`)."""

    name: str
    load: Callable[[Path, Catalogue], Retriever]
    fit: Callable[[KnownEvents, Mapping[str, Any]], Retriever] | None = None


RETRIEVERS: Final = (  # in the order in which they appear in features and tables
    RetrieverSpec(TWO_TOWER, TwoTowerRetriever.load),
    RetrieverSpec(EASE, lambda p, _: Ease.load(p), lambda e, s: Ease.fit(e.user_idx, e.item_idx, e.n_items, **s)),
    RetrieverSpec(IALS, lambda p, _: Ials.load(p), lambda e, s: Ials.fit(e.user_idx, e.item_idx, e.n_items, **s)),
    RetrieverSpec(
        ITEM_KNN, lambda p, _: ItemKnn.load(p), lambda e, s: ItemKnn.fit(e.user_idx, e.item_idx, e.n_items, **s)
    ),
    RetrieverSpec(
        COVISITATION,
        lambda p, _: Covisitation.load(p),
        lambda e, s: Covisitation.fit(e.user_idx, e.item_idx, e.timestamps, e.n_items, **s),
    ),
    RetrieverSpec(
        POPULARITY,
        lambda p, _: Popularity.load(p),
        lambda e, s: Popularity.fit(e.item_idx, e.timestamps, e.n_items, cutoff=e.cutoff, **s),
    ),
)


def fit_retriever(name: str, events: KnownEvents, settings: Mapping[str, Any]) -> Retriever:
    """The named retriever with the keyword arguments of its `fit`. Raises ConfigError for a name that none has."""
    for spec in RETRIEVERS:
        if spec.name == name and spec.fit is not None:
            return spec.fit(events, settings)
    known = ", ".join(spec.name for spec in RETRIEVERS if spec.fit is not None)
    raise ConfigError(f"there is no retriever {name!r} to fit; known are {known}")


def load_retrievers(folder: Path, catalogue: Catalogue) -> list[Retriever]:
    """Every retriever that `folder` holds, in the order of RETRIEVERS. Raises BundleError where there is none, and for
    one that is damaged or of another catalogue."""
    found = [spec.load(folder / spec.name, catalogue) for spec in RETRIEVERS if (folder / spec.name).is_dir()]
    if not found:
        raise BundleError(f"{folder} holds no retriever; train again with `recsys train`")
    for retriever in found:
        if retriever.n_items != len(catalogue):
            raise BundleError(
                f"{folder}: {retriever.name} knows {retriever.n_items} items, the catalogue {len(catalogue)}; "
                "train again with `recsys train`"
            )
    return found
