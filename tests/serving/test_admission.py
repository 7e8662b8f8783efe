"""Lanes: what is let in, what is told to come back, and that one lane never waits for the other."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest
import uvloop

from serving.admission import Admission, Lane
from serving.observability.logs import request_id
from serving.observability.metrics import Metrics
from serving.problems import ProblemError
from serving.service import Service

from .serving_client import connected
from .serving_world import ServingWorld


def lane(
    metrics: Metrics,
    threads: int = 1,
    max_queue: int = 2,
    max_wait_ms: float | None = None,
    waits: Callable[[int], None] = lambda _: None,
) -> Lane:
    return Lane("test", threads, max_queue, max_wait_ms, lambda: metrics, waits)


def test_the_work_sees_what_the_request_set_and_the_queue_is_told_of_and_empty_again() -> None:
    told: list[int] = []
    go = threading.Event()

    async def scenario() -> list[str]:
        own = lane(Metrics(), waits=told.append)
        asked = []
        for name in ("a", "b", "c"):
            request_id.set(name)
            asked.append(asyncio.create_task(own.run(lambda: (go.wait(20), request_id.get())[1])))
        await asyncio.sleep(0.01)
        assert told == [0, 1, 1]
        go.set()
        answers = await asyncio.gather(*asked)
        own.close()
        return answers

    assert asyncio.run(scenario()) == ["a", "b", "c"]
    assert sum(told) == 0


def test_a_full_queue_refuses_at_once_and_serves_whom_it_let_in() -> None:
    metrics, go = Metrics(), threading.Event()

    async def scenario() -> tuple[list[int], ProblemError, float]:
        own = lane(metrics)
        inside = [asyncio.create_task(own.run(lambda n: go.wait(20) and n, n)) for n in (1, 2, 3)]
        await asyncio.sleep(0.01)
        started = time.perf_counter()
        with pytest.raises(ProblemError) as refused:
            await own.run(int)
        took = time.perf_counter() - started
        go.set()
        answers = await asyncio.gather(*inside)
        assert await own.run(int) == 0  # there is room again
        own.close()
        return answers, refused.value, took

    answers, refused, took = asyncio.run(scenario())
    assert answers == [1, 2, 3]
    assert (refused.status, refused.kind, refused.headers()) == (503, "overloaded", {"Retry-After": "1"})
    assert took < 0.1
    assert metrics.as_dict()["shed.queue_full"] == 1


def test_nobody_is_let_in_whose_turn_would_come_too_late() -> None:
    """The mean after one run of 100 ms is 10 ms (weight 0.1): the second is through after 20 ms, the third after 30."""
    metrics, go = Metrics(), threading.Event()

    async def scenario() -> Lane:
        own = lane(metrics, max_queue=50, max_wait_ms=25.0)
        await own.run(time.sleep, 0.1)
        assert own.expected_wait_ms == 0.0
        first = asyncio.create_task(own.run(go.wait, 20))
        await asyncio.sleep(0)
        assert 10.0 <= own.expected_wait_ms < 14.0
        second = asyncio.create_task(own.run(int))
        await asyncio.sleep(0)
        with pytest.raises(ProblemError, match="Too many requests at once"):
            await own.run(int)
        go.set()
        await asyncio.gather(first, second)
        own.close()
        return own

    asyncio.run(scenario())
    assert metrics.as_dict() == {"shed.budget": 1}


@pytest.mark.parametrize("threads", [0, 1])
def test_whoever_comes_to_an_idle_lane_is_let_in_however_slow_the_last_ones_were(threads: int) -> None:
    async def scenario() -> None:
        own = lane(Metrics(), threads, max_wait_ms=0.001)
        for _ in range(3):
            await own.run(time.sleep, 0.02)
        own.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("threads", [0, 1])
def test_a_failure_reaches_its_caller_and_frees_its_place(threads: int) -> None:
    async def scenario() -> None:
        own = lane(Metrics(), threads, max_queue=1)
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await own.run(lambda: 1 / 0)
        own.close()
        with pytest.raises(RuntimeError, match="were closed"):
            await own.run(int)

    asyncio.run(scenario())


def test_the_event_loop_computes_in_turn_and_the_work_sees_what_the_request_set() -> None:
    done: list[str] = []

    def work(name: str) -> str:
        assert request_id.get() == name
        assert threading.current_thread() is threading.main_thread()
        done.append(name)
        return name.upper()

    async def ask(own: Lane, name: str) -> str:
        request_id.set(name)
        return await own.run(work, name)

    async def scenario() -> list[str]:
        own = lane(Metrics(), threads=0)
        answers = await asyncio.gather(*(ask(own, name) for name in ("a", "b", "c")))
        own.close()
        return answers

    assert asyncio.run(scenario()) == ["A", "B", "C"]
    assert done == ["a", "b", "c"]


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_arrives_during_a_turn_has_begun_before_the_next(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Over a socket: read in one round of the loop, begun as a task in the next."""
    here, there = socket.socketpair()
    here.setblocking(False)
    done: list[str] = []

    def work(n: int) -> None:
        done.append(f"turn {n}")
        there.send(bytes([n]))

    async def begin(n: int) -> None:
        done.append(f"arrival {n}")

    async def scenario() -> None:
        own, loop, begun = lane(Metrics(), threads=0, max_queue=9), asyncio.get_running_loop(), []
        loop.add_reader(here, lambda: begun.append(asyncio.create_task(begin(here.recv(1)[0]))))
        await asyncio.gather(*(own.run(work, n) for n in (1, 2, 3)))
        loop.remove_reader(here)
        own.close()

    with here, there, asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(scenario())
    assert done[:5] == ["turn 1", "arrival 1", "turn 2", "arrival 2", "turn 3"]


def fails_to_begin() -> None:
    raise OSError("no threads")


def test_no_failure_stops_the_turns() -> None:
    def run_out() -> None:
        raise StopIteration

    async def scenario() -> list[object]:
        own = Lane("test", 0, 9, None, Metrics, lambda _: None)
        found = await asyncio.gather(*(own.run(work) for work in (run_out, int)), return_exceptions=True)
        broken = Lane("test", 0, 9, None, Metrics, lambda _: None, fails_to_begin)
        found += await asyncio.gather(*(broken.run(int) for _ in range(2)), return_exceptions=True)
        return found

    first, second, *unbegun = asyncio.run(asyncio.wait_for(scenario(), 20))
    assert isinstance(first, RuntimeError)
    assert second == 0
    assert [str(error) for error in unbegun] == ["no threads", "no threads"]


def test_a_full_queue_before_the_event_loop_refuses_and_serves_whom_it_let_in() -> None:
    metrics, told = Metrics(), []

    async def scenario() -> list[object]:
        own = lane(metrics, threads=0, max_queue=2, waits=told.append)
        found = await asyncio.gather(*(own.run(int, n) for n in (1, 2, 3, 4)), return_exceptions=True)
        found.append(await own.run(int, 5))
        own.close()
        return found

    found = asyncio.run(scenario())
    assert [found[n] for n in (0, 1, 2, 4)] == [1, 2, 3, 5]
    assert isinstance(found[3], ProblemError)
    assert found[3].status == 503
    assert metrics.as_dict() == {"shed.queue_full": 1}
    assert (max(told), sum(told)) == (1, 0)


def test_who_has_gone_before_their_turn_is_not_computed_for() -> None:
    done: list[int] = []

    async def scenario() -> None:
        own = lane(Metrics(), threads=0)
        asked = [asyncio.create_task(own.run(done.append, n)) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert await own.run(int) == 0  # its place is free again
        own.close()

    asyncio.run(scenario())
    assert done == [1, 3]


def test_a_place_is_held_while_its_caller_waits_for_something_else() -> None:
    """A store that is read before the turn: whoever waits for it counts among those inside."""

    async def scenario() -> None:
        own, read = lane(Metrics(), threads=0, max_queue=1), asyncio.Event()

        async def ask() -> int:
            async with own.place():
                await read.wait()
                return await own.turn(int, 7)

        asked = [asyncio.create_task(ask()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ProblemError, match="Too many requests at once"):
            await own.run(int)
        read.set()
        assert await asyncio.gather(*asked) == [7, 7]
        own.close()

    asyncio.run(scenario())


def test_the_event_loop_is_told_to_use_one_thread_once_before_the_first_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("serving.admission.single_threaded", lambda: told.append(threading.current_thread().name))
    metrics = Metrics()

    async def scenario() -> None:
        admission = Admission(threads=0, io_threads=1, max_queue=8, max_wait_ms=None, metrics=lambda: metrics)
        assert told == []
        await asyncio.gather(*(admission.answers.run(told.append, str(n)) for n in range(3)), admission.io.run(int))
        admission.close()

    asyncio.run(scenario())
    assert told == [threading.main_thread().name, "0", "1", "2"]


def test_each_compute_thread_is_told_to_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("serving.admission.single_threaded", lambda: told.append(threading.current_thread().name))
    metrics = Metrics()

    async def scenario() -> None:
        admission = Admission(threads=2, io_threads=1, max_queue=8, max_wait_ms=None, metrics=lambda: metrics)
        await asyncio.gather(*(admission.answers.run(time.sleep, 0.02) for _ in range(4)), admission.io.run(int))
        admission.close()

    asyncio.run(scenario())
    assert sorted(told) == ["compute-0", "compute-1"]


def test_events_and_cheap_routes_do_not_wait_behind_answers(
    service: Service, world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One compute thread, held by an answer that does not end."""
    go, begun = threading.Event(), threading.Event()
    recommend = service.recommend_user

    def slow(*args):  # type: ignore[no-untyped-def]
        begun.set()
        go.wait(20)
        return recommend(*args)

    monkeypatch.setattr(service, "recommend_user", slow)
    settings = world.settings.model_copy(update={"threads": 1, "max_queue": 1})
    with connected(settings, service) as client:
        answers: list[int] = []

        def ask() -> None:
            with httpx.Client(base_url=client.base_url, trust_env=False, timeout=30) as other:
                answers.append(other.get("/v1/users/1/recommendations").status_code)

        asking = [threading.Thread(target=ask) for _ in range(2)]
        for thread in asking:
            thread.start()
        assert begun.wait(20)
        depth = "recsys_queue_depth 1.0"
        until = time.monotonic() + 20
        while depth not in client.get("/metrics").text:  # the second one waits
            assert time.monotonic() < until
        refused = client.get("/v1/users/2/recommendations")
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:recsys:problem:overloaded"
        assert refused.headers["retry-after"] == "1"
        for path in ("/healthz", "/readyz", "/metrics", "/v1/model", "/v1/users/3/history"):
            assert client.get(path).status_code == 200, path
        event = {"user_id": 4, "item_id": 5, "rating": 4.0}
        assert client.post("/v1/events", json=event).status_code == 201
        go.set()
        for thread in asking:
            thread.join()
        assert answers == [200, 200]
