"""What one request for a list asks for, and what it carries through its stages."""

import time
from dataclasses import dataclass, field

from recsys.filters import Filters
from serving.recommending.paging import LONGEST_LIST


@dataclass(frozen=True)
class RecommendationOptions:
    """k: items shown; paginate: make a list of LONGEST_LIST and show its first k."""

    k: int
    filters: Filters = field(default_factory=Filters)
    diversity: float = 0.0
    explain: bool = False
    paginate: bool = False

    @property
    def length(self) -> int:
        return max(self.k, LONGEST_LIST) if self.paginate else self.k


@dataclass
class RequestTrace:
    """started: `time.perf_counter()` when the request arrived, before it waited for anything; degraded: the parts that
    the answer is given without; timings_ms: how long each stage took."""

    request_id: str
    started: float
    degraded: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1e3
