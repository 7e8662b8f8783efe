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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from serving.benchmark.connection import BrokenResponseError, Connection, Response, request_bytes
from serving.benchmark.percentiles import Percentiles

MOST_CONNECTIONS = 400  # select() watches at most 1,024


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
    or no answer. late: how late the generator itself sent."""

    requests: int
    seconds: float
    latency: Percentiles | None
    degraded: int
    shed: int
    failed: int
    late: Percentiles | None

    @property
    def answered_per_s(self) -> float:
        return (self.latency.n if self.latency else 0) / self.seconds

    @property
    def lost_share(self) -> float:
        """Of the requests: shed, failed, or answered with a part left out."""
        return (self.degraded + self.shed + self.failed) / max(self.requests, 1)


class Pool:
    """Keep-alive connections, opened when none is idle."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.host, self._address = address.netloc, (address.hostname or "127.0.0.1", address.port or 80)
        self._idle: deque[Connection] = deque()
        self._free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def ask(self, request: bytes, timeout_s: float) -> tuple[Response, float]:
        """The response, and the moment when the request was sent. Raises OSError or BrokenResponseError."""
        async with self._free:
            while self._idle and not self._idle[0].usable:
                self._idle.popleft().close()
            # The one used longest ago: each of several workers, which keep their connections, then gets its share.
            connection = self._idle.popleft() if self._idle else await Connection.open(*self._address)
            sent = time.monotonic()
            try:
                response = await connection.ask(request, timeout_s)
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
            return response, sent

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


def outcome(response: Response) -> str:
    if response.status != 200:
        return "shed" if response.status == 503 else "failed"
    left_out = b'"degraded":[' in response.body and b'"degraded":[]' not in response.body
    return "degraded" if left_out else "full"


async def _measure(plan: Plan, pool: Pool) -> Load:
    requests, outcomes = [request_bytes("GET", path, pool.host) for path in plan.paths], Counter[str]()
    latency_ms, late_ms = list[float](), list[float]()

    async def ask(number: int, due: float) -> None:
        try:
            response, sent = await pool.ask(requests[number % len(requests)], plan.timeout_s)
        except (OSError, BrokenResponseError):
            outcomes["failed"] += 1
            return
        late_ms.append((sent - due) * 1e3)
        outcomes[found := outcome(response)] += 1
        if found == "full":  # others may be fast, and would flatter
            latency_ms.append((time.monotonic() - due) * 1e3)

    async def client(until: float, numbers: Iterator[int]) -> None:
        for number in numbers:
            if time.monotonic() >= until:
                return
            await ask(number, time.monotonic())

    for number in range(plan.warm_up):
        await pool.ask(requests[number % len(requests)], plan.timeout_s)
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
        late=Percentiles.of(late_ms),
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
