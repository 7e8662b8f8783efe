"""How large a synthetic world is, and how long it lasts."""

import math
from dataclasses import dataclass
from typing import Final

from recsys.errors import ConfigError

MIN_EVENTS_PER_USER: Final = 20  # MovieLens publishes only users with at least 20 ratings
MAX_DENSITY: Final = 0.5  # of the user x movie matrix; ml-100k has .063, ml-1m .045
MAX_SHARE_PER_USER: Final = 0.66  # of the catalogue; the busiest user of ml-1m rated 62 %
MIN_MOVIES: Final = 40  # 20 events must be no more than half the catalogue
START_UTC: Final = 946_684_800  # 2000-01-01 00:00:00 UTC, when the first user can arrive
DAY_S: Final = 86_400
MAX_SPAN_DAYS: Final = 7300


@dataclass(frozen=True)
class WorldSize:
    """The defaults are ml-100k's. `n_events` is hit exactly; as in MovieLens, a few movies may have no rating."""

    n_users: int = 943
    n_items: int = 1682
    n_events: int = 100_000

    def __post_init__(self) -> None:
        users, items, events = self.n_users, self.n_items, self.n_events
        fewest, most = MIN_EVENTS_PER_USER * users, math.floor(MAX_DENSITY * users * items)
        if users < 1:
            raise ConfigError(f"n_users is {users}; a synthetic world needs at least 1 user.")
        if items < MIN_MOVIES:
            raise ConfigError(f"n_items is {items}; a synthetic world needs at least {MIN_MOVIES} movies.")
        if not fewest <= events <= most:
            raise ConfigError(
                f"n_events is {events}; {users} users x {items} movies need at least {fewest} ({MIN_EVENTS_PER_USER} a "
                f"user) and carry at most {most} ({MAX_DENSITY:.0%} of all pairs). Ask for other sizes."
            )

    @property
    def days(self) -> int:
        """Over which users arrive and return: 214 at 100k events (ml-100k: 7 months), 1095 at 1M (ml-1m: 3 years)."""
        return min(MAX_SPAN_DAYS, max(60, round(214 * math.pow(self.n_events / 100_000, 0.709))))

    @property
    def n_clusters(self) -> int:
        """C, groups of movies that people rate together; it grows with the square root of the catalogue."""
        return min(300, max(6, round(1.5 * math.sqrt(self.n_items))))
