"""The limits of what comes from outside, in one place: data files, HTTP and command options refuse the same values.

What one of them accepts, the others must be able to say again: an id that was trained has to fit into a URL and JSON.
"""

from typing import Final

LARGEST_ID: Final = 2**53 - 1  # ids of users and items: 0 to this, which every reader of JSON keeps exactly

EARLIEST_TIME: Final = 0  # seconds since 1970-01-01 UTC
CLOCK_SKEW_S: Final = 5  # how far ahead of this machine's clock another one may be

LOWEST_RATING: Final = 0.5
HIGHEST_RATING: Final = 5.0
RATING_STEP: Final = 0.5

MOST_RECOMMENDED: Final = 1_000  # k of one list, whatever a setting or an option says
MOST_HISTORY: Final = 1_000  # ratings that a request brings along
MOST_EVENTS: Final = 500  # of one request
MOST_USERS: Final = 50  # of one request
MOST_EXCLUDED: Final = 10_000  # item ids that a body excludes; a query string has room for fewer
MOST_EXCLUDED_IN_QUERY: Final = 200
MOST_GENRES: Final = 20

LONGEST_TEXT: Final = 100  # characters of an occupation, or of an id that is no number
LONGEST_GENRE: Final = 40
LONGEST_SEARCH: Final = 200
LONGEST_KEY: Final = 128  # of an event or a request

_UNITS: Final = ((10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds"))
_NOT_BEFORE: Final = 631_152_000  # 1990-01-01: whoever rates on a computer does so later


def latest_time(now: float) -> int:
    """The last second at which something can have happened, as of `now` (seconds UTC)."""
    return int(now) + CLOCK_SKEW_S


def likely_unit(timestamp: int, now: float) -> str | None:
    """The unit that makes a timestamp beyond `latest_time` one of the past; None where none does.

    >>> likely_unit(1_700_000_000_000, 1_750_000_000), likely_unit(2_900_000_000, 1_750_000_000)
    ('milliseconds', None)
    """
    for factor, unit in _UNITS:
        if _NOT_BEFORE <= timestamp // factor <= latest_time(now):
            return unit
    return None
