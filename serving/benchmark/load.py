"""The load generator: it asks a service in a closed or an open loop, from a process of its own.

Closed loop: each client sends its next request when it has its answer. It waits out a stall and sends nothing, so that
a stall shows in one answer a client ("coordinated omission").
Open loop: requests arrive by a Poisson process, answered or not, and the clock of each runs from the moment when it was
due. A stall shows in everybody who had to wait.
"""

import asyncio
import multiprocessing
import random
import selectors
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Self
from urllib.parse import urlsplit

from hdrh.histogram import HdrHistogram

MOST_CONNECTIONS = 400  # select() watches at most 1,024
LONGEST_IDLE_S = 3.0  # servers close idle connections after a few seconds
LONGEST_US = 120_000_000


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds, of `n` durations: each at most 0.1 % off, nothing sampled, nothing interpolated."""

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float

    @classmethod
    def of(cls, durations_ms: Iterable[float]) -> Self | None:
        """None where there is no duration. Below a microsecond counts as one.

        >>> Percentiles.of([1.0] * 98 + [30.0] * 2).p99_ms
        30.015
        """
        histogram = HdrHistogram(1, LONGEST_US, 3)
        for ms in durations_ms:
            histogram.record_value(min(max(round(ms * 1e3), 1), LONGEST_US))
        if not histogram.get_total_count():
            return None
        p50, p90, p99, p999 = (histogram.get_value_at_percentile(p) / 1e3 for p in (50, 90, 99, 99.9))
        return cls(int(histogram.get_total_count()), p50, p90, p99, p999, histogram.get_max_value() / 1e3)


@dataclass(frozen=True)
class Plan:
    """`paths` are asked for in turn, by so many `clients` of a closed loop, or `rate` times a second in an open loop.
    A closed loop ends after so many `requests`, or `seconds`. `warm_up` requests before are not measured."""

    url: str
    paths: tuple[str, ...]
    clients: int = 1
    rate: float | None = None
    seconds: float = 5.0
    requests: int | None = None
    warm_up: int = 5
    seed: int = 7
    timeout_s: float = 15.0


@dataclass(frozen=True)
class Load:
    """latency: of full answers (status 200, nothing left out), since they were due. shed: 503. failed: another status,
    or no answer."""

    requests: int
    seconds: float
    latency: Percentiles | None
    degraded: int
    shed: int
    failed: int

    @property
    def answered_per_s(self) -> float:
        return (self.latency.n if self.latency else 0) / self.seconds

    @property
    def lost_share(self) -> float:
        """Of the requests: shed, failed, or answered with a part left out."""
        return (self.degraded + self.shed + self.failed) / max(self.requests, 1)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes

    @property
    def outcome(self) -> str:
        if self.status != 200:
            return "shed" if self.status == 503 else "failed"
        return "degraded" if b'"degraded":[' in self.body and b'"degraded":[]' not in self.body else "full"


class Connection:
    """A keep-alive HTTP/1.1 connection, without TLS, that costs little; httpx takes half a millisecond a request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._used = reader, writer, time.monotonic()

    @property
    def usable(self) -> bool:
        return not self._reader.at_eof() and time.monotonic() - self._used < LONGEST_IDLE_S

    async def ask(self, request: bytes, timeout_s: float) -> Response:
        """Raises OSError (a TimeoutError is one), also where what comes back is not a whole response; close it then."""
        self._writer.write(request)
        try:
            async with asyncio.timeout(timeout_s):
                head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                response = Response(int(head[9:12]), await self._reader.readexactly(int(length)))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise ConnectionError(f"not a whole HTTP/1.1 response: {error}") from error
        self._used = 0.0 if b"\r\nconnection: close" in head else time.monotonic()
        return response

    def close(self) -> None:
        self._writer.close()


class Pool:
    """Keep-alive connections to one service, opened when none is idle."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._address = address.netloc, (address.hostname or "127.0.0.1", address.port or 80)
        self._idle: deque[Connection] = deque()
        self._free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def ask(
        self, path: str, timeout_s: float, *, method: str = "GET", body: bytes = b"", headers: str = ""
    ) -> Response:
        """`headers`: more lines, each with its line end. Raises OSError."""
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        request = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{headers}{kind}\r\n".encode("latin-1") + body
        async with self._free:
            while self._idle and not self._idle[0].usable:
                self._idle.popleft().close()
            # The one used longest ago: each of several workers, which keep their connections, then gets its share.
            idle = self._idle.popleft() if self._idle else None
            connection = idle or Connection(*await asyncio.open_connection(*self._address))
            try:
                response = await connection.ask(request, timeout_s)
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
            return response

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


def poisson_arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Moments in [0, seconds), ascending. The same seed gives the same ones."""
    rng = random.Random(seed)
    at = rng.expovariate(rate)
    while at < seconds:
        yield at
        at += rng.expovariate(rate)


async def _measure(plan: Plan, pool: Pool) -> Load:
    outcomes, latency_ms = Counter[str](), list[float]()

    async def ask(number: int, due: float) -> None:
        try:
            outcome = (await pool.ask(plan.paths[number % len(plan.paths)], plan.timeout_s)).outcome
        except OSError:
            outcome = "failed"
        outcomes[outcome] += 1
        if outcome == "full":  # others may be fast, and would flatter
            latency_ms.append((time.monotonic() - due) * 1e3)

    async def client(until: float, numbers: Iterator[int]) -> None:
        for number in numbers:
            if time.monotonic() >= until:
                return
            await ask(number, time.monotonic())

    for number in range(plan.warm_up):
        await pool.ask(plan.paths[number % len(plan.paths)], plan.timeout_s)
    begun = time.monotonic()
    async with asyncio.TaskGroup() as running:
        if plan.rate is None:
            numbers = iter(range(plan.requests or 10**9))
            for _ in range(plan.clients):
                running.create_task(client(begun + plan.seconds, numbers))
        else:
            for number, at in enumerate(poisson_arrivals(plan.rate, plan.seconds, plan.seed)):
                await asyncio.sleep(begun + at - time.monotonic())  # where it is late too: answers must be read
                running.create_task(ask(number, begun + at))
    seconds = time.monotonic() - begun
    return Load(
        requests=outcomes.total(),
        seconds=seconds if plan.rate is None else max(seconds, plan.seconds),
        latency=Percentiles.of(latency_ms),
        degraded=outcomes["degraded"],
        shed=outcomes["shed"],
        failed=outcomes["failed"],
    )


def run(plan: Plan) -> Load:
    """The plan, in this process. Raises OSError where nothing listens."""
    # epoll rounds its sleeps up to milliseconds, select does not
    loop = partial(asyncio.SelectorEventLoop, selectors.SelectSelector())
    with asyncio.Runner(loop_factory=loop) as runner, closing(Pool(plan.url)) as pool:
        return runner.run(_measure(plan, pool))


@contextmanager
def generator() -> Iterator[Callable[[Plan], Load]]:
    """`run` in a process of its own, for as many plans as wanted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield lambda plan: process.submit(run, plan).result()
