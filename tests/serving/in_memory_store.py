"""A feature store of one dictionary: quick, and it fails or is slow when a test says so."""

import time

from recsys.errors import StoreError
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import ItemStats, ItemStatsTimeline
from recsys.features.state import UserState


class InMemoryStore:
    """The part of the feature store that the service uses. `rows`: a state for each known user; `reads`: how often it
    was asked for one."""

    def __init__(self, rows: dict[int, UserState], stats: ItemStatsTimeline | None = None) -> None:
        self.rows, self._stats = rows, stats
        self.failing, self.delay_s, self.reads = False, 0.0, 0

    def online_state(self, user_id: int) -> UserState | None:
        self.reads += 1
        time.sleep(self.delay_s)
        if self.failing:
            raise StoreError("the store is away")
        return self.rows.get(user_id)

    def last_snapshot_day(self) -> int:
        assert self._stats is not None
        return self._stats.last_day

    def item_stats_as_of(self, _catalogue: Catalogue, day: int) -> ItemStats:
        assert self._stats is not None
        return self._stats.as_of(day)

    def close(self) -> None:
        pass
