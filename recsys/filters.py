"""What a caller allows in an answer. Filters apply before ranking, and the retrievers know of them."""

from dataclasses import dataclass

import numpy as np

from recsys.arrays import BoolArray
from recsys.errors import ConfigError
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import ItemStats


@dataclass(frozen=True)
class Filters:
    """What the caller allows; empty means everything. An item needs one of the genres; years are inclusive, and an item
    without a year passes neither bound; min_ratings as of the day's statistics."""

    genres: tuple[str, ...] = ()
    year_from: int | None = None
    year_to: int | None = None
    exclude_ids: tuple[int, ...] = ()
    min_ratings: int = 0

    def allowed(self, catalogue: Catalogue, stats: ItemStats) -> BoolArray | None:
        """(N,) mask, or None where everything is allowed. Raises ConfigError for a genre that no item has."""
        if self == Filters():
            return None
        mask = np.ones(len(catalogue), dtype=bool)
        if self.genres:
            unknown = sorted(set(self.genres) - set(catalogue.genre_names))
            if unknown:
                raise ConfigError(f"unknown genre {unknown[0]!r}; known are {', '.join(catalogue.genre_names)}")
            columns = [catalogue.genre_names.index(g) for g in self.genres]
            mask &= catalogue.genres[:, columns].any(axis=1)
        if self.year_from is not None:
            mask &= catalogue.years >= self.year_from
        if self.year_to is not None:
            mask &= catalogue.years <= self.year_to
        excluded = catalogue.to_idx(np.asarray(self.exclude_ids, dtype=np.int64))
        mask[excluded[excluded >= 0]] = False
        if self.min_ratings:
            mask &= stats.n_ratings >= self.min_ratings
        return mask
