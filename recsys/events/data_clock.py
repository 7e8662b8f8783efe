"""Old data, live clock: how the service's time becomes the time of the data set that its models learnt from.

MovieLens ended years ago. Were its ratings and today's on one time line, the first rating of today would make every
other user absent for years and every item forgotten. So the years between are left out: the first live day follows the
last recorded one.
"""

from dataclasses import dataclass
from typing import Final

DAY_S: Final = 86_400
LIVE_WITHIN_DAYS: Final = 30  # a data set that ended so recently is live itself, and nothing is left out


@dataclass(frozen=True)
class DataClock:
    """Midnights, seconds UTC: the end of the last recorded day, and the start of the first live one. Models see data
    time; people and the event table have live time. Both are the same by default."""

    recorded_end: int = 0
    live_start: int = 0

    @classmethod
    def following(cls, last_recorded: int | None, first_live: float) -> "DataClock":
        """`last_recorded`: the data set's last event, None where its time is the service's; `first_live`: when the
        first event was received, or now while there is none."""
        if last_recorded is None:
            return cls()
        end, start = (last_recorded // DAY_S + 1) * DAY_S, int(first_live // DAY_S) * DAY_S
        return cls(end, start) if start - end > LIVE_WITHIN_DAYS * DAY_S else cls()

    def to_data(self, live_s: int) -> int:
        """What lies in the years left out counts as the beginning of the first live day. Never reverses an order.

        >>> clock = DataClock.following(last_recorded=10 * DAY_S + 5, first_live=1_000 * DAY_S + 9)
        >>> [clock.to_data(moment) for moment in (DAY_S, 500 * DAY_S, 1_000 * DAY_S + 9)]
        [86400, 950400, 950409]
        """
        return live_s if live_s < self.recorded_end else max(live_s - self.shift_s, self.recorded_end)

    def to_live(self, data_s: int) -> int:
        """As people see it: recorded moments as recorded, later ones as they were lived."""
        return data_s if data_s < self.recorded_end else data_s + self.shift_s

    @property
    def shift_s(self) -> int:
        return self.live_start - self.recorded_end
