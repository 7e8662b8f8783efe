"""The load of the soak test: an open loop whose every answer is checked, a hundredth of it malformed on purpose.

Stage: serving (soak test). In: a `SoakPlan`. Out: a `SoakResult`: what came back, and each answer that was not as it
must be. Absent: what happens to the service meanwhile (`soak`).

An answer must be for the user who was asked for, carry the request's own id, hold k different items, and none that
this user has rated; the last is waived where the answer says that the user's state could not be read. A malformed
request must be refused with the status that its fault deserves. Shed load (503 "overloaded") is right at any time.

`python -m serving.bench.soak_load` reads a plan as JSON and prints the result as JSON.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from serving.bench.connection import Answer, BrokenAnswerError, request_bytes
from serving.bench.histogram import Durations
from serving.bench.load import Pool, open_loop, poisson_arrivals, precise_loop

SHED = "urn:recsys:problem:overloaded"
UNREADABLE = "user_state"
TOLD = 20  # violations that are told in words; all are counted
OVERSIZE = 2_000_000  # bytes, twice what the service takes


@dataclass(frozen=True)
class SoakPlan:
    """seen      items that each user has rated, by user id; the users are asked for at random
    versions  of the model that an answer may come from
    """

    url: str
    rate: float
    seconds: float
    k: int
    seen: dict[int, list[int]]
    versions: list[int]
    malformed: float = 0.01
    seed: int = 7
    timeout_s: float = 15.0


@dataclass
class SoakResult:
    """statuses    of well-formed requests; `refused` those of malformed ones, by kind and status
    degraded    parts that answers say were left out, by name
    versions    answers by version of the model
    wrong       answers that were not as they must be, by kind; `told` describes the first
    unreadable  seconds since the start of each answer whose user's state could not be read
    """

    requests: int = 0
    malformed: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)
    unreadable: list[float] = field(default_factory=list)
    latency: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def violated(self, kind: str, what: str) -> None:
        self.wrong[kind] += 1
        if len(self.told) < TOLD:
            self.told.append(f"{kind}: {what}")


@dataclass(frozen=True)
class Malformed:
    """A request that must be refused. `alone`: on a connection of its own, which the service may close early."""

    kind: str
    method: str
    path: str
    body: bytes | None
    statuses: tuple[int, ...]
    alone: bool = False


MALFORMED = (
    Malformed("bad JSON", "POST", "/v1/recommendations", b'{"history": [', (400, 422)),
    Malformed("wrong type in the body", "POST", "/v1/recommendations", b'{"history": "none"}', (422,)),
    Malformed("huge k", "GET", "/v1/users/1/recommendations?k=1000000000000", None, (422,)),
    Malformed("wrong type in the path", "GET", "/v1/users/abc/recommendations", None, (422,)),
    Malformed("bad path", "GET", "/v1/%00nothing", None, (404,)),
    Malformed("oversize body", "POST", "/v1/recommendations", b" " * OVERSIZE, (413,), alone=True),
)


class Checker:
    """Asks and checks; one for a run."""

    def __init__(self, plan: SoakPlan) -> None:
        self.plan, self.result = plan, SoakResult()
        address = urlsplit(plan.url)
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._pool = Pool(self._host, self._port)
        self._rng = random.Random(plan.seed)
        self._users = list(plan.seen)
        self._seen = {user_id: frozenset(items) for user_id, items in plan.seen.items()}
        self._latency = Durations()
        self._begun: float | None = None

    async def run(self) -> SoakResult:
        arrivals = poisson_arrivals(self.plan.rate, self.plan.seconds, self.plan.seed)
        self.result.seconds = await open_loop(arrivals, self.plan.seconds, self.ask)
        self._pool.close()
        self.result.latency = self._latency.summary()
        return self.result

    def ask(self, number: int, due: float) -> Awaitable[None]:
        """What is asked is decided here, in the order of arrival: the same seed asks the same."""
        self._begun = due if self._begun is None else self._begun
        self.result.requests += 1
        if self._rng.random() < self.plan.malformed:
            self.result.malformed += 1
            return self._ask_malformed(self._rng.choice(MALFORMED))
        return self._ask_for(self._rng.choice(self._users), f"soak-{number}", due)

    async def _ask_for(self, user_id: int, request_id: str, due: float) -> None:
        path = f"/v1/users/{user_id}/recommendations?k={self.plan.k}"
        sent = request_bytes("GET", path, f"{self._host}:{self._port}", headers={"X-Request-ID": request_id})
        try:
            answer, _ = await self._pool.ask(sent, self.plan.timeout_s)
        except (OSError, BrokenAnswerError) as error:
            self.result.violated("no answer", f"{request_id}, user {user_id}: {type(error).__name__} {error}")
            return
        now = asyncio.get_running_loop().time()
        self.result.statuses[str(answer.status)] += 1
        if answer.status == 200:
            self._latency.add(now - due)
        self.check(answer, user_id, request_id, now - (self._begun or now))

    def check(self, answer: Answer, user_id: int, request_id: str, at_s: float) -> None:
        """Note everything that is wrong with the answer to a well-formed request."""
        result, who = self.result, f"{request_id}, user {user_id}"
        try:
            body = json.loads(answer.body)
        except ValueError:
            result.violated("not JSON", f"{who}: {answer.status} {answer.body[:60]!r}")
            return
        if answer.header("x-request-id") != request_id:
            result.violated("request id", f"{who}: the header says {answer.header('x-request-id')}")
        if answer.status == 503 and body.get("type") == SHED:
            return
        if answer.status != 200:
            kind = "server error" if answer.status >= 500 else "refused"
            result.violated(kind, f"{who}: {answer.status} {body.get('type')}, {body.get('detail')}")
            return
        items = [item["item_id"] for item in body["items"]]
        result.versions[str(body["model"]["version"])] += 1
        result.degraded.update(body["degraded"])
        if body["request_id"] != request_id:
            result.violated("request id", f"{who}: the body says {body['request_id']}")
        if body["user_id"] != user_id:
            result.violated("wrong user", f"{who}: answered for {body['user_id']}")
        if body["model"]["version"] not in self.plan.versions:
            result.violated("unknown version", f"{who}: version {body['model']['version']}")
        if len(set(items)) != self.plan.k:
            result.violated("wrong number", f"{who}: {len(set(items))} different items for k = {self.plan.k}")
        if UNREADABLE in body["degraded"]:
            result.unreadable.append(at_s)
        elif again := self._seen[user_id].intersection(items):
            result.violated("seen item", f"{who}: has rated {sorted(again)[:3]}, degraded {body['degraded']}")

    async def _ask_malformed(self, asked: Malformed) -> None:
        pool = Pool(self._host, self._port) if asked.alone else self._pool
        sent = request_bytes(asked.method, asked.path, f"{self._host}:{self._port}", asked.body)
        try:
            answer, _ = await pool.ask(sent, self.plan.timeout_s)
        except (OSError, BrokenAnswerError) as error:
            if asked.alone and isinstance(error, ConnectionError):  # refused while it was still being sent
                self.result.refused[f"{asked.kind}: closed"] += 1
            else:
                self.result.violated("no answer", f"{asked.kind}: {type(error).__name__} {error}")
            return
        finally:
            if asked.alone:
                pool.close()
        self.result.refused[f"{asked.kind}: {answer.status}"] += 1
        shed = answer.status == 503 and SHED.encode() in answer.body
        if answer.status not in asked.statuses and not shed:
            kind = "server error" if answer.status >= 500 else "malformed accepted"
            self.result.violated(kind, f"{asked.kind}: {answer.status} {answer.body[:80]!r}")


def plan_from(asked: dict[str, Any]) -> SoakPlan:
    """JSON has text for keys; users are numbers."""
    return SoakPlan(**{**asked, "seen": {int(user_id): items for user_id, items in asked["seen"].items()}})


def main() -> None:
    plan = plan_from(json.load(sys.stdin))
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        json.dump(vars(runner.run(Checker(plan).run())), sys.stdout)


if __name__ == "__main__":
    main()
