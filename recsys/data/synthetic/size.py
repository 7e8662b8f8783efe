"""How large a synthetic world is, and how long it lasts.

Stage: data. In: the numbers a person asks for. Out: a checked `WorldSize`, or a ConfigError that names the limit.
Absent: the seed, and every constant that shapes behaviour (they live beside the code that uses them).
"""

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
    """The defaults are ml-100k's.

    n_users    every one has at least 20 events
    n_items   rows of movies.dat; as in MovieLens, a few may have no rating
    n_events   rows of ratings.dat, hit exactly
    span_days  days over which users arrive and return; None chooses by n_events: 214 at 100k (ml-100k: 7 months),
               1095 at 1M (ml-1m: nearly 3 years), at most 7300. A session that began in time may end later.
    """

    n_users: int = 943
    n_items: int = 1682
    n_events: int = 100_000
    span_days: int | None = None

    def __post_init__(self) -> None:
        if self.n_users < 1:
            raise ConfigError(f"n_users is {self.n_users}; a synthetic world needs at least 1 user.")
        if self.n_items < MIN_MOVIES:
            raise ConfigError(f"n_items is {self.n_items}; a synthetic world needs at least {MIN_MOVIES} movies.")
        fewest = MIN_EVENTS_PER_USER * self.n_users
        if self.n_events < fewest:
            raise ConfigError(
                f"n_events is {self.n_events}, but {self.n_users} users with {MIN_EVENTS_PER_USER} events each need "
                f"{fewest}. Ask for more events or fewer users."
            )
        most = math.floor(MAX_DENSITY * self.n_users * self.n_items)
        if self.n_events > most:
            raise ConfigError(
                f"n_events is {self.n_events}, but {self.n_users} users x {self.n_items} movies carry at most {most} "
                f"({MAX_DENSITY:.0%} of all pairs). Ask for fewer events, or more users or movies."
            )
        if self.span_days is not None and not 30 <= self.span_days <= MAX_SPAN_DAYS:
            raise ConfigError(f"span_days is {self.span_days}; it must lie in 30..{MAX_SPAN_DAYS}.")

    @property
    def days(self) -> int:
        """Length of the world in days."""
        if self.span_days is not None:
            return self.span_days
        return min(MAX_SPAN_DAYS, max(60, round(214 * math.pow(self.n_events / 100_000, 0.709))))

    @property
    def n_clusters(self) -> int:
        """C, groups of movies that people rate together; it grows with the square root of the catalogue."""
        return min(300, max(6, round(1.5 * math.sqrt(self.n_items))))


LIKE_ML_100K: Final = WorldSize()
LIKE_ML_1M: Final = WorldSize(n_users=6_040, n_items=3_700, n_events=1_000_000)
LIKE_ML_25M: Final = WorldSize(n_users=162_541, n_items=59_047, n_events=25_000_000)
