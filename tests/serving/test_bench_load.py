"""The load generator: the client's parser, the clock of each loop, and what is counted."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from recsys.errors import RecsysError
from serving.bench import load
from serving.bench.connection import Answer, AnswerReader, BrokenAnswerError, Connection, connect, request_bytes
from serving.bench.generator import Generator, generate
from serving.bench.histogram import LONGEST_US, PERCENTILES, Durations, name_of
from serving.bench.load import Load, Plan, Tally, poisson_arrivals, together

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Request-ID: Ab1\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\nWiki\r\n6;name=value\r\npedia \r\nB\r\nin \r\nchunks\r\n0\r\nExpires: never\r\n\r\n"
)


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
@pytest.mark.parametrize(("wire", "body"), [(OK, b"hello"), (CHUNKED, b"Wikipedia in \r\nchunks")])
def test_an_answer_is_read_in_pieces_of_any_size(wire: bytes, body: bytes, step: int) -> None:
    reader = AnswerReader()
    for _ in range(2):  # the reader is as new after an answer
        found = [reader.feed(wire[at : at + step]) for at in range(0, len(wire), step)]
        assert found[:-1] == [None] * (len(found) - 1)
        answer = found[-1]
        assert answer is not None
        assert (answer.status, answer.body, answer.keep_alive) == (200, body, True)


def test_headers_are_found_whatever_their_case() -> None:
    answer = AnswerReader().feed(OK)
    assert answer is not None
    assert answer.header("x-REQUEST-id") == "ab1"
    assert answer.header("content-length") == "5"
    assert answer.header("length") is None


@pytest.mark.parametrize(
    ("wire", "status", "body", "keep_alive"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"hello", True),
        (b"HTTP/1.1 413 Too large\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n", 413, b"", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x", False),
    ],
)
def test_answers_of_every_kind(wire: bytes, status: int, body: bytes, keep_alive: bool) -> None:
    answer = AnswerReader().feed(wire)
    assert answer is not None
    assert (answer.status, answer.body, answer.keep_alive) == (status, body, keep_alive)


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    reader = AnswerReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhal") is None
    assert reader.feed(b"f") is None
    answer = reader.end()
    assert answer is not None
    assert (answer.body, answer.keep_alive) == (b"half", False)
    assert reader.end() is None


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        (b"SMTP 220 hello\r\n\r\n", "not an HTTP/1 status line"),
        (b"HTTP/1.1 abc\r\n\r\n", "not an HTTP/1 status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "content-length is b'many'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "a chunk's size"),
        (OK + OK, "bytes follow"),
        (b"x" * 70_000, "no end of the headers"),
    ],
)
def test_what_is_no_answer_is_refused(wire: bytes, said: str) -> None:
    with pytest.raises(BrokenAnswerError, match=said):
        AnswerReader().feed(wire)


def test_half_an_answer_is_refused() -> None:
    reader = AnswerReader()
    reader.feed(OK[:-2])
    with pytest.raises(BrokenAnswerError, match="in the middle"):
        reader.end()


def test_requests_are_written_out() -> None:
    assert request_bytes("GET", "/a?k=1", "h:1") == b"GET /a?k=1 HTTP/1.1\r\nHost: h:1\r\n\r\n"
    sent = request_bytes("POST", "/b", "h", b"{}", {"X-Id": "7"})
    assert sent == (
        b"POST /b HTTP/1.1\r\nHost: h\r\nX-Id: 7\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    plain = request_bytes("POST", "/b", "h", b"{}", {"content-type": "text/plain"})
    assert b"application/json" not in plain


# -- percentiles and arrivals ---------------------------------------------------------------------------------------


def test_percentiles_are_those_of_numpy_to_a_thousandth() -> None:
    seconds = np.random.default_rng(0).lognormal(-6, 1.2, 20_000)
    durations = Durations()
    for value in seconds.tolist():
        durations.add(value)
    found = durations.summary()
    for p in PERCENTILES:
        expected = float(np.percentile(seconds, p, method="inverted_cdf")) * 1e3
        assert found[name_of(p)] == pytest.approx(expected, rel=2e-3, abs=2e-3)
    assert found["max_ms"] == pytest.approx(seconds.max() * 1e3, rel=2e-3)
    assert found["mean_ms"] == pytest.approx(seconds.mean() * 1e3, rel=2e-3)
    assert found["n"] == 20_000


def test_durations_beyond_the_ends_are_kept() -> None:
    durations = Durations()
    assert durations.summary() == {"n": 0}
    durations.add(0.0)
    durations.add(1e9)
    found = durations.summary()
    assert found["n"] == 2
    assert found["max_ms"] == pytest.approx(LONGEST_US / 1e3, rel=1e-3)
    assert found["p50_ms"] == 0.001


def test_arrivals_are_a_poisson_process_that_its_seed_repeats() -> None:
    arrivals = poisson_arrivals(200.0, 100.0, seed=3)
    assert arrivals == poisson_arrivals(200.0, 100.0, seed=3)
    assert arrivals != poisson_arrivals(200.0, 100.0, seed=4)
    assert arrivals == sorted(arrivals)
    assert 0 <= arrivals[0] <= arrivals[-1] < 100.0
    assert len(arrivals) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    gaps = np.diff(arrivals)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as an exponential has it
    per_second = np.bincount(np.asarray(arrivals).astype(int), minlength=100)
    assert per_second.var() == pytest.approx(per_second.mean(), rel=0.6)


# -- the loops, against servers of the test's own ------------------------------------------------------------------


class Server:
    """Answers every request from `answers` in turn, the last for ever; may stall once for everybody."""

    def __init__(self, answers: list[bytes], stall_at: int = -1, stall_s: float = 0.0) -> None:
        self.answers, self.stall_at, self.stall_s = answers, stall_at, stall_s
        self.asked = 0
        self.port = 0
        self.open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open[asyncio.current_task()] = writer
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                if self.asked == self.stall_at:
                    time.sleep(self.stall_s)  # the whole server stands still
                answer = self.answers[min(self.asked, len(self.answers) - 1)]
                self.asked += 1
                writer.write(answer)
                if not answer or b"close" in answer:
                    return

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def listening(server: Server) -> Iterator[Server]:
    """On an event loop and a thread of its own."""
    ready, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listener.close()
        for writer in server.open.values():
            writer.close()
        await asyncio.gather(*(task for task in server.open if task is not None))
        await asyncio.sleep(0.01)  # transports close on the next turns of the loop

    with asyncio.Runner() as runner:
        thread = threading.Thread(target=runner.run, args=(main(),))
        thread.start()
        try:
            assert ready.wait(10)
            yield server
        finally:
            runner.get_loop().call_soon_threadsafe(stop.set)
            thread.join()


def measured(plan: Plan) -> Load:
    with asyncio.Runner(loop_factory=load.precise_loop) as runner:
        return runner.run(load.run(plan))


def test_an_open_loop_shows_a_stall_that_a_closed_one_hides() -> None:
    with listening(Server([OK], stall_at=100, stall_s=0.4)) as server:
        opened = measured(Plan(server.url, ("/",), rate=200.0, seconds=2.0))
    with listening(Server([OK], stall_at=100, stall_s=0.4)) as server:
        closed = measured(Plan(server.url, ("/",), requests=400, seconds=30.0))
    # some 80 of 400 requests were due while the server stood still, and waited 0.2 s on average
    assert opened.latency["p99_ms"] > 300
    assert opened.latency["p90_ms"] > 100
    assert closed.latency["n"] == 400
    assert closed.latency["p99_ms"] < 100
    assert closed.latency["max_ms"] > 390


def test_an_open_loop_sends_when_it_should() -> None:
    with listening(Server([OK])) as server:
        found = measured(Plan(server.url, ("/",), rate=300.0, seconds=1.0, seed=5))
    arrivals = poisson_arrivals(300.0, 1.0, 5)
    assert found.requests == len(arrivals) == found.latency["n"] == found.late["n"]
    assert found.offered == len(arrivals)
    assert found.achieved == pytest.approx(found.offered, rel=0.1)
    assert found.late["p50_ms"] < 20


def test_a_closed_loop_ends_by_number_and_by_time() -> None:
    with listening(Server([OK])) as server:
        by_number = measured(Plan(server.url, ("/",), clients=4, requests=40, warmup=3))
        assert server.asked == 43
        by_time = measured(Plan(server.url, ("/",), clients=2, seconds=0.2))
    assert by_number.latency["n"] == by_number.requests == 40
    assert by_time.seconds == pytest.approx(0.2, abs=0.15)
    assert by_number.cpu_us > 0


def json_answer(status: int, body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), more, body)


def test_what_came_back_is_counted_apart() -> None:
    answers = [
        json_answer(200, b'{"degraded":[],"timings_ms":{"total":2.0}}'),
        json_answer(200, b'{"degraded":["ranking","user_state"],"timings_ms":{"total":4.0}}'),
        json_answer(503, b"{}"),
        json_answer(500, b"{}", b"Connection: close\r\n"),
        b"",  # hangs up
        b"nonsense\r\n\r\n",
        json_answer(200, b'{"degraded":["ranking"],"timings_ms":{"total":6.0}}'),
    ]
    with listening(Server(answers)) as server:
        found = measured(Plan(server.url, ("/",), requests=6))  # and one that was shed
    assert found.statuses == {"200": 3, "503": 1, "500": 1}
    assert found.degraded == {"ranking": 2, "user_state": 1}
    assert (found.degraded_answers, found.shed, found.failed) == (2, 1, 3)
    assert found.errors == {"ConnectionResetError": 1, "BrokenAnswerError": 1}
    assert found.latency["n"] == 1  # the one to which nothing was missing
    assert found.inside == {"total": 6.0}  # the median of those that were read: the degraded ones
    assert found.achieved == pytest.approx(1 / found.seconds)


def test_a_request_without_an_answer_times_out() -> None:
    with listening(Server([OK[:-1]])) as server:
        found = measured(Plan(server.url, ("/",), requests=1, timeout_s=0.05))
    assert found.errors == {"TimeoutError": 1}
    assert found.failed == 1
    assert found.latency == {"n": 0}


def test_a_connection_is_not_asked_again_after_it_broke() -> None:
    async def asked() -> None:
        connection = Connection()
        with pytest.raises(ConnectionResetError, match="closed"):
            await connection.ask(b"", 1.0)
        with pytest.raises(ConnectionRefusedError):
            await connect("127.0.0.1", 9)

    asyncio.run(asked())


def test_every_tenth_answer_is_read_whole() -> None:
    tally = Tally()
    for number in range(1, 41):
        tally.add(Answer(200, b"", b'{"degraded":[],"timings_ms":{"total":%d.0}}' % number, True), 0.001)
    assert tally.inside == {"total": [10.0, 20.0, 30.0, 40.0]}
    assert tally.full == 40


def test_the_generator_is_a_process_of_its_own() -> None:
    with listening(Server([OK])) as server:
        found = generate(Plan(server.url, ("/", "/b"), clients=2, requests=30))
    assert found.latency["n"] == 30
    assert found.statuses == {"200": 30}
    assert any(us % 1000 > 10 for us, _ in found.counted), "no clock that goes by milliseconds"
    assert sum(count for _, count in found.counted) == 30


def test_one_generator_for_several_plans() -> None:
    with listening(Server([OK])) as server, Generator() as generator:
        assert generator.run(Plan(server.url, ("/",), requests=5)).latency["n"] == 5
        assert generator.run(Plan(server.url, ("/",), rate=200.0, seconds=0.1)).late != {}
        assert generator.run(Plan(server.url, ("/",), clients=2, requests=7)).latency["n"] >= 7


def test_turns_are_put_together() -> None:
    """Percentiles of all durations, not means of percentiles; rates by the time of all turns."""

    def turn(seconds: float, counted: list[tuple[int, int]], inside: dict[str, float]) -> Load:
        n = sum(count for _, count in counted)
        statuses, degraded, errors = {"200": n, "503": 1}, {"ranking": 2}, {"TimeoutError": 1}
        return Load(
            seconds, n + 2, {"n": n}, {}, statuses, degraded, 2, errors, counted, inside, 0.0, n / seconds, 100.0
        )

    found = together([turn(1.0, [(1_000, 90)], {"total": 1.0}), turn(3.0, [(1_000, 8), (50_000, 2)], {})])
    assert (found.latency["n"], found.requests, found.seconds) == (100, 104, 4.0)
    assert found.latency["p50_ms"] == pytest.approx(1.0, rel=1e-3)
    assert found.latency["p99_ms"] == pytest.approx(50.0, rel=1e-3)
    assert found.statuses == {"200": 100, "503": 2}
    assert (found.degraded, found.degraded_answers, found.errors) == ({"ranking": 4}, 4, {"TimeoutError": 2})
    assert found.inside == {"total": 1.0}
    assert (found.achieved, found.offered, found.cpu_us) == (25.0, 26.0, 100.0)


def test_a_generator_that_fails_says_why() -> None:
    with pytest.raises(RecsysError, match="The load generator failed: ConnectionRefusedError"):
        generate(Plan("http://127.0.0.1:9", ("/",), requests=1, warmup=1))
