"""The load of the freshness benchmark: users rate what they were recommended, and ask again at once, while others read.

Stage: serving (benchmark). In: a `FreshnessPlan`. Out: a `FreshnessResult`: every duration, and each answer that was
not as it must be. Absent: which store is measured, what durations add up to, and the verdict (`freshness`).

Reads and ratings are two open loops (`load`); the clock of each request runs from the moment when it was due. A rating
is of the first item of the user's newest list. It is seen once a list of that user comes without the item; a list
that was made without the user's state shows nothing. Afterwards each user's history must have grown by as many events
as were accepted.

With `posting` False the same lists are asked for and nothing is rated: what reads cost where nobody writes.

`python -m serving.bench.freshness_load` reads a plan as JSON and prints the result as JSON.
"""

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from serving.bench.connection import Answer, BrokenAnswerError, request_bytes
from serving.bench.load import Pool, open_loop, poisson_arrivals, precise_loop

UNREADABLE = "user_state"
TOLD = 10  # violations that are told in words; all are counted
FIRST_TRIES = 20
PAUSE_S = 0.01  # before a list is asked for again, so that a service out of breath is not kept so
UNSEEN_S = 5.0  # a rating that no list shows by then is lost


@dataclass(frozen=True)
class FreshnessPlan:
    """read_rate, write_rate   arrivals a second
    readers    users whose lists are read, in turn
    writers    users who rate, in turn
    api_key    for POST /v1/events; None where the service asks for none
    """

    url: str
    read_rate: float
    write_rate: float
    seconds: float
    k: int
    readers: tuple[int, ...]
    writers: tuple[int, ...]
    posting: bool = True
    api_key: str | None = None
    seed: int = 7
    timeout_s: float = 15.0


@dataclass
class FreshnessResult:
    """Durations in ms, in the order in which they ended.

    reads_ms   a list of somebody else, from when it was due
    post_ms    a rating, from when it was due until it was accepted
    seen_ms    a rating, from when it was due until a list showed it
    own_ms     the user's next list, from the rating's acceptance; without posting, from when it was due
    at_once    ratings that the first answer showed
    stale      lists that were made with a state which did not know the rating yet
    unanswered asked for a list, and told to come back, or given one that was made without the user's state
    moved      ratings after which the other items stood in another order, or were others
    wrong      what was not as it must be, by kind; `told` describes the first
    """

    reads_ms: list[float] = field(default_factory=list)
    post_ms: list[float] = field(default_factory=list)
    seen_ms: list[float] = field(default_factory=list)
    own_ms: list[float] = field(default_factory=list)
    at_once: int = 0
    stale: int = 0
    unanswered: int = 0
    moved: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def violated(self, kind: str, what: str) -> None:
        self.wrong[kind] += 1
        if len(self.told) < TOLD:
            self.told.append(f"{kind}: {what}")


@dataclass
class Writer:
    """What is known of a user who rates: the newest list, and how many events the service must know."""

    items: list[int]
    n_events: int
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # one rating after the other


class Measurement:
    """Asks, and notes what came back; one for a run."""

    def __init__(self, plan: FreshnessPlan) -> None:
        self.plan, self.result = plan, FreshnessResult()
        address = urlsplit(plan.url)
        host, port = address.hostname or "127.0.0.1", address.port or 80
        self._host = f"{host}:{port}"
        self._pool = Pool(host, port)
        self._writers: dict[int, Writer] = {}

    async def run(self) -> FreshnessResult:
        plan = self.plan
        try:
            for user_id in plan.writers:
                self._writers[user_id] = Writer(await self._first_list(user_id), await self._n_events(user_id))
            reads = poisson_arrivals(plan.read_rate, plan.seconds, plan.seed)
            writes = poisson_arrivals(plan.write_rate, plan.seconds, plan.seed + 1)
            await asyncio.gather(
                open_loop(reads, plan.seconds, self._read), open_loop(writes, plan.seconds, self._write)
            )
            for user_id, writer in self._writers.items():
                if (found := await self._n_events(user_id)) != writer.n_events:
                    what = f"user {user_id}: {found} events, {writer.n_events} were accepted"
                    self.result.violated("history", what)
        finally:
            self._pool.close()
        return self.result

    async def _read(self, number: int, due: float) -> None:
        user_id = self.plan.readers[number % len(self.plan.readers)]
        answer = await self._ask("GET", self._list_path(user_id))
        if answer is not None and answer.status == 200:
            self.result.reads_ms.append(self._since(due))

    async def _write(self, number: int, due: float) -> None:
        user_id = self.plan.writers[number % len(self.plan.writers)]
        writer = self._writers[user_id]
        async with writer.turn:
            if not self.plan.posting:
                if await self._list_of(user_id) is not None:
                    self.result.own_ms.append(self._since(due))
                return
            if not writer.items:
                self.result.violated("empty list", f"user {user_id} has nothing left to rate")
                return
            item = writer.items[0]
            if not await self._rated(user_id, item, writer):
                return
            accepted = asyncio.get_running_loop().time()
            self.result.post_ms.append(self._since(due))
            tries = 0
            while True:
                tries += 1
                items = await self._list_of(user_id)
                if items is not None and item not in items:
                    break
                self.result.stale += items is not None
                self.result.unanswered += items is None
                if self._since(accepted) > UNSEEN_S * 1e3:
                    self.result.violated("not seen", f"user {user_id}: item {item} is still recommended")
                    writer.items.pop(0)
                    return
                await asyncio.sleep(PAUSE_S)
            self.result.seen_ms.append(self._since(due))
            self.result.own_ms.append(self._since(accepted))
            self.result.at_once += tries == 1
            self.result.moved += items[: len(writer.items) - 1] != writer.items[1:]
            writer.items = items

    async def _rated(self, user_id: int, item: int, writer: Writer) -> bool:
        """Whether the rating was accepted and the service's state has it."""
        body = json.dumps({"user_id": user_id, "item_id": item, "rating": 4.0}).encode()
        answer = await self._ask("POST", "/v1/events", body)
        if answer is None:
            return False
        said = _parsed(answer)
        if answer.status != 201 or not said.get("applied"):
            self.result.violated("not accepted", f"user {user_id}: {answer.status} {answer.body[:120]!r}")
            return False
        writer.n_events += 1
        if said["n_events"] != writer.n_events:
            self.result.violated("count", f"user {user_id}: {said['n_events']} events, not {writer.n_events}")
        return True

    async def _list_of(self, user_id: int) -> list[int] | None:
        """The items recommended to a user; None where the answer does not rest on the user's state."""
        answer = await self._ask("GET", self._list_path(user_id))
        if answer is None or answer.status != 200:
            return None
        body = _parsed(answer)
        self.result.degraded.update(body["degraded"])
        return None if UNREADABLE in body["degraded"] else [item["item_id"] for item in body["items"]]

    async def _first_list(self, user_id: int) -> list[int]:
        for _ in range(FIRST_TRIES):  # on a busy machine an answer may do without the state
            if items := await self._list_of(user_id):
                return items
            await asyncio.sleep(PAUSE_S)
        raise RuntimeError(f"user {user_id} gets no list to rate from")

    async def _n_events(self, user_id: int) -> int:
        answer = await self._ask("GET", f"/v1/users/{user_id}/history?n=1")
        if answer is None or answer.status != 200:
            raise RuntimeError(f"the history of user {user_id} cannot be read")
        return int(_parsed(answer)["n_events"])

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Answer | None:
        """None, counted, where no answer came."""
        headers = {"Authorization": f"Bearer {self.plan.api_key}"} if self.plan.api_key and method == "POST" else None
        try:
            sent = request_bytes(method, path, self._host, body, headers)
            answer, _ = await self._pool.ask(sent, self.plan.timeout_s)
        except (OSError, BrokenAnswerError) as error:
            self.result.violated("no answer", f"{method} {path}: {type(error).__name__} {error}")
            return None
        self.result.statuses[str(answer.status)] += 1
        if answer.status >= 400 and answer.status != 503:
            self.result.violated("error", f"{method} {path}: {answer.status} {answer.body[:120]!r}")
        return answer

    def _list_path(self, user_id: int) -> str:
        return f"/v1/users/{user_id}/recommendations?k={self.plan.k}"

    @staticmethod
    def _since(moment: float) -> float:
        return (asyncio.get_running_loop().time() - moment) * 1e3


def _parsed(answer: Answer) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(answer.body)
    except ValueError:
        return {}
    return found


def main() -> None:
    asked = json.load(sys.stdin)
    plan = FreshnessPlan(**{**asked, "readers": tuple(asked["readers"]), "writers": tuple(asked["writers"])})
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        json.dump(vars(runner.run(Measurement(plan).run())), sys.stdout)


if __name__ == "__main__":
    main()
