"""Who may do what, and how often: the key for writes and administration, and a rate for each client.

There are no users or sessions, and no trust in headers such as X-Forwarded-For: behind a proxy every client has the
proxy's address, so let the proxy limit rates. Whoever sends the key counts as one client.

Without a key, writes are open where the service listens on this machine alone. Other pages in this machine's browser
are kept out by Origin and Host; a browser cannot forge either.
"""

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from serving.http.problems import ProblemError
from serving.observability.logs import PROBES
from serving.observability.metrics import Metrics
from serving.settings import ServiceSettings, is_loopback

# By prefix, since a route may match more than its own text ("/v1/events%0A" reaches /v1/events).
PROTECTED = ("/v1/events", "/v1/admin")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
CLIENTS = 10_000  # whose tokens are counted; beyond that the one that asked longest ago is forgotten
RATE_BEYOND_LOOPBACK = 100.0
BURST_BEYOND_LOOPBACK = 200


class Access:
    """Called on the event loop alone, so nothing is locked."""

    def __init__(
        self, settings: ServiceSettings, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._origins = set(settings.allowed_origins)
        self._metrics = metrics
        open_to_network = not is_loopback(settings.host)
        rate = settings.rate_per_s
        self._rate = (RATE_BEYOND_LOOPBACK if open_to_network else 0.0) if rate is None else rate
        burst = settings.burst if settings.burst is not None else BURST_BEYOND_LOOPBACK
        self._buckets = Buckets(self._rate, burst, clock) if self._rate > 0 else None

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raises ProblemError 429, 401 or 403."""
        path, method = scope["path"], scope["method"]
        has_key = self._has_key(headers)
        if self._buckets is not None and path not in PROBES:
            wait_s = self._buckets.take("key" if has_key else _address(scope))
            if wait_s > 0:
                self._metrics.shed("rate_limit")
                raise ProblemError(
                    429, "rate-limited", f"At most {self._rate:g} requests a second.", retry_after=max(int(wait_s), 1)
                )
        if method in SAFE_METHODS or not path.startswith(PROTECTED):
            return
        if self._key is None:
            _refuse_foreign(headers, self._origins)
        elif not has_key:
            raise ProblemError(
                401, "key-needed", "Send the service's key as `Authorization: Bearer ...` or `X-API-Key`."
            )

    def _has_key(self, headers: Headers) -> bool:
        if self._key is None:
            return False
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        return hmac.compare_digest(given.encode(), self._key)


class Buckets:
    """A token bucket for each client: `burst` at once, `rate` a second after that."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens, when they were counted

    def take(self, client: str) -> float:
        """0 where a token was left, else the seconds until there is one."""
        now = self._clock()
        tokens, since = self._left.pop(client, (self._burst, now))
        tokens = min(tokens + (now - since) * self._rate, self._burst)
        allowed = tokens >= 1
        self._left[client] = (tokens - 1 if allowed else tokens, now)
        if len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._rate

    def __len__(self) -> int:
        return len(self._left)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _refuse_foreign(headers: Headers, allowed: set[str]) -> None:
    """Without a key: refuse a page of another origin, and one that calls this machine by a name of its own."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    try:
        local = is_loopback(urlsplit(f"//{host}").hostname or "")
        own = origin is None or origin in allowed or urlsplit(origin).netloc == host
    except ValueError:  # no URL at all
        local = own = False
    if not (local and own):
        raise ProblemError(403, "foreign-origin", "Pages of another origin may not write here.")
