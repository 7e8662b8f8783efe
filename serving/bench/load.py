"""The load generator: it asks a service in a closed or an open loop.

Stage: serving (benchmark). In: a `Plan`. Out: a `Load`: percentiles, and what else came back, counted. Absent: which
load is worth asking for (`sweep`, `latency`), and whether the answers are right (`soak`).

Closed loop: each client sends its next request when it has its answer. Such a client waits out a stall of the service
and sends nothing meanwhile, so that a stall shows in one answer alone ("coordinated omission").
Open loop: requests come when they come, by a Poisson process, whether or not earlier ones were answered. The clock of
each runs from the moment when it was due, not from when it could be sent. A stall shows in everyone who had to wait.

`python -m serving.bench.load` reads plans, a line of JSON each, and prints a line of JSON for each (`generator`).
"""

import asyncio
import json
import random
import selectors
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import numpy as np
import uvloop

from serving.bench.connection import Answer, BrokenAnswerError, Connection, connect, request_bytes
from serving.bench.histogram import Counted, Durations, pooled

MOST_CONNECTIONS = 400  # select() watches at most 1024
MOST_IDLE_S = 3.0  # servers close an idle connection after a few seconds; one that is older is not trusted
DETAIL_EVERY = 10  # of so many answers one is read whole, for the times that the service itself tells
SHED = "503"
LEAD_S = 0.05  # between the decision to begin and the first arrival


@dataclass(frozen=True)
class Plan:
    """url        the service
    paths      asked in turn by GET
    clients    of a closed loop
    rate       arrivals a second of an open loop; None is a closed one
    requests   a closed loop ends after so many that were not shed, or after `seconds`
    seconds    an open loop has arrivals for so long
    warmup     requests before, by the same clients one after the other, unmeasured
    """

    url: str
    paths: tuple[str, ...]
    clients: int = 1
    rate: float | None = None
    requests: int | None = None
    seconds: float = 5.0
    warmup: int = 0
    seed: int = 7
    timeout_s: float = 15.0


@dataclass(frozen=True)
class Load:
    """latency     of answers with status 200, in ms (`histogram.Durations.summary`)
    late        how late the generator itself sent, against when a request was due (open loop)
    statuses    answers by status; "503" is shed load
    degraded    parts left out, by name; `degraded_answers` counts the answers that left out any
    errors      requests without an answer, by kind
    counted     the same durations, each with how often it came
    inside      medians of the times that answers tell of themselves, a sample
    offered, achieved   a second: requests; full answers, which have status 200 and nothing left out
    cpu_us      processor time of the generator a request
    """

    seconds: float
    requests: int
    latency: dict[str, float]
    late: dict[str, float]
    statuses: dict[str, int]
    degraded: dict[str, int]
    degraded_answers: int
    errors: dict[str, int]
    counted: list[Counted]
    inside: dict[str, float]
    offered: float
    achieved: float
    cpu_us: float

    @property
    def shed(self) -> int:
        return self.statuses.get(SHED, 0)

    @property
    def failed(self) -> int:
        """Neither answered nor shed."""
        answered = self.statuses.get("200", 0)
        return sum(self.statuses.values()) - answered - self.shed + sum(self.errors.values())


def together(loads: Sequence[Load]) -> Load:
    """Several turns of one closed loop as one."""
    requests, seconds = sum(load.requests for load in loads), sum(load.seconds for load in loads)
    full = sum(load.achieved * load.seconds for load in loads)
    return Load(
        seconds=seconds,
        requests=requests,
        latency=pooled(load.counted for load in loads).summary(),
        late={},
        statuses=_added(load.statuses for load in loads),
        degraded=_added(load.degraded for load in loads),
        degraded_answers=sum(load.degraded_answers for load in loads),
        errors=_added(load.errors for load in loads),
        counted=[],
        inside={
            stage: float(np.median([load.inside[stage] for load in loads if stage in load.inside]))
            for stage in dict.fromkeys(stage for load in loads for stage in load.inside)
        },
        offered=requests / seconds,
        achieved=full / seconds,
        cpu_us=sum(load.cpu_us * load.requests for load in loads) / max(requests, 1),
    )


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments in [0, seconds), ascending: a Poisson process of `rate` a second. The same seed gives the same ones."""
    rng = random.Random(seed)
    out: list[float] = []
    at = rng.expovariate(rate)
    while at < seconds:
        out.append(at)
        at += rng.expovariate(rate)
    return out


class Pool:
    """Keep-alive connections, opened when none is free, up to MOST_CONNECTIONS; beyond, requests wait."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        # The one used last is used last again: with several workers behind one address, which keep the connections that
        # they took, all of them get their share, as a load balancer would see to.
        self._idle: deque[tuple[float, Connection]] = deque()
        self._free = asyncio.Semaphore(MOST_CONNECTIONS)

    async def ask(self, request: bytes, timeout_s: float) -> tuple[Answer, float]:
        """The answer, and the moment when the request was sent."""
        async with self._free:
            connection = self._fresh(time.monotonic()) or await connect(self._host, self._port)
            sent = time.monotonic()
            answer = await connection.ask(request, timeout_s)
            if connection.usable:
                self._idle.append((time.monotonic(), connection))
            return answer, sent

    def _fresh(self, now: float) -> Connection | None:
        while self._idle:
            since, connection = self._idle.popleft()
            if connection.usable and now - since < MOST_IDLE_S:
                return connection
            connection.close()
        return None

    def close(self) -> None:
        for _, connection in self._idle:
            connection.close()


@dataclass
class Tally:
    """What came back so far."""

    latency: Durations = field(default_factory=Durations)
    late: Durations = field(default_factory=Durations)
    statuses: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    inside: dict[str, list[float]] = field(default_factory=dict)
    degraded_answers: int = 0
    full: int = 0

    def add(self, answer: Answer, seconds: float) -> None:
        self.statuses[str(answer.status)] += 1
        if answer.status != 200:
            return
        left_out = b'"degraded":[' in answer.body and b'"degraded":[]' not in answer.body
        if not left_out:  # one that left a part out may be fast, and would flatter
            self.latency.add(seconds)
        self.degraded_answers += left_out
        self.full += not left_out
        if left_out or (self.full % DETAIL_EVERY == 0 and b'"timings_ms":' in answer.body):
            body = json.loads(answer.body)
            self.degraded.update(body.get("degraded", ()))
            for stage, ms in body.get("timings_ms", {}).items():
                self.inside.setdefault(stage, []).append(ms)

    def load(self, requests: int, seconds: float, elapsed: float, cpu_s: float) -> Load:
        """`seconds`: as long as requests came; `elapsed`: until the last answer."""
        middle = {stage: sorted(ms)[len(ms) // 2] for stage, ms in self.inside.items()}
        return Load(
            seconds=elapsed,
            requests=requests,
            latency=self.latency.summary(),
            late=self.late.summary(),
            statuses=dict(self.statuses),
            degraded=dict(self.degraded),
            degraded_answers=self.degraded_answers,
            errors=dict(self.errors),
            counted=self.latency.counted(),
            inside=middle,
            offered=requests / seconds if seconds else 0.0,
            achieved=self.full / elapsed if elapsed else 0.0,
            cpu_us=cpu_s * 1e6 / max(requests, 1),
        )


async def noted(tally: Tally, asking: Awaitable[tuple[Answer, float]], due: float) -> Answer | None:
    """Wait for an answer and count it, its time counted from `due`; None where none came."""
    try:
        answer, sent = await asking
    except (OSError, BrokenAnswerError) as error:  # a TimeoutError is an OSError
        tally.errors[type(error).__name__] += 1
        return None
    tally.late.add(max(sent - due, 0.0))
    tally.add(answer, time.monotonic() - due)
    return answer


async def closed_loop(plan: Plan, pool: Pool, requests: Sequence[bytes]) -> Load:
    tally = Tally()
    begun, cpu = time.monotonic(), time.process_time()
    until = begun + plan.seconds
    sent = 0

    async def client() -> None:
        nonlocal sent
        while time.monotonic() < until and (plan.requests is None or sent - tally.statuses[SHED] < plan.requests):
            sent += 1
            await noted(tally, pool.ask(requests[sent % len(requests)], plan.timeout_s), time.monotonic())

    await asyncio.gather(*(client() for _ in range(plan.clients)))
    elapsed = time.monotonic() - begun
    return tally.load(sent, elapsed, elapsed, time.process_time() - cpu)


async def open_loop(arrivals: Sequence[float], seconds: float, ask: Callable[[int, float], Awaitable[None]]) -> float:
    """Call `ask(number, moment when it is due)` at every arrival, and wait for all of them; the time it took."""
    begun = time.monotonic() + LEAD_S
    running: set[asyncio.Task[None]] = set()
    for number, at in enumerate(arrivals):
        await asyncio.sleep(max(begun + at - time.monotonic(), 0.0))  # also where it is late: answers must be read
        task = asyncio.ensure_future(_as_task(ask(number, begun + at)))
        running.add(task)
        task.add_done_callback(running.discard)
    while running:
        await asyncio.gather(*running)
    return max(time.monotonic() - begun, seconds)


async def _as_task(asking: Awaitable[None]) -> None:
    await asking


async def run(plan: Plan) -> Load:
    """The plan, on this event loop."""
    address = urlsplit(plan.url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    pool = Pool(host, port)
    requests = [request_bytes("GET", path, f"{host}:{port}") for path in plan.paths]
    try:
        for number in range(plan.warmup):
            await pool.ask(requests[number % len(requests)], plan.timeout_s)
        if plan.rate is None:
            return await closed_loop(plan, pool, requests)
        arrivals = poisson_arrivals(plan.rate, plan.seconds, plan.seed)
        tally, cpu = Tally(), time.process_time()

        async def ask(number: int, due: float) -> None:
            await noted(tally, pool.ask(requests[number % len(requests)], plan.timeout_s), due)

        elapsed = await open_loop(arrivals, plan.seconds, ask)
        return tally.load(len(arrivals), plan.seconds, elapsed, time.process_time() - cpu)
    finally:
        pool.close()


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop that wakes to the microsecond: epoll, and uvloop with it, rounds its sleeps up to milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def cheap_loop() -> asyncio.AbstractEventLoop:
    """For clients that never sleep: half of the processor time that a request costs the generator."""
    return uvloop.new_event_loop()


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        plan = Plan(**{**asked, "paths": tuple(asked["paths"])})
        with asyncio.Runner(loop_factory=cheap_loop if plan.rate is None else precise_loop) as runner:
            print(json.dumps(asdict(runner.run(run(plan)))), flush=True)


if __name__ == "__main__":
    main()
