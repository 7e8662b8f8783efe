"""The load generator: from when durations count, what is counted apart, and wrk's opinion of it."""

import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from serving.benchmark.load import Plan, generator, poisson_arrivals, run
from tests.stores.native import binary

from .stub_service import FULL, PARTIAL, Reply, Stub, listening

PATHS = ("/v1/users/1/recommendations?k=10", "/v1/users/2/recommendations?k=10")


def test_a_stall_shows_in_everybody_who_was_due_and_a_closed_loop_hides_it() -> None:
    """The service stands still for half of the second; of the half who were due then, most waited 50 ms or more."""
    with listening(Stub(pauses={20: 0.5})) as stub:
        load = run(Plan(stub.url, PATHS, rate=200.0, seconds=1.0, warm_up=0))
    assert load.latency is not None
    assert load.requests == load.latency.n == len(list(poisson_arrivals(200.0, 1.0, 7)))
    assert load.latency.p50_ms < 400
    assert load.latency.p90_ms > 300
    assert load.latency.max_ms >= 450
    with listening(Stub(pauses={20: 0.5})) as stub:
        load = run(Plan(stub.url, PATHS, requests=200, warm_up=0))
    assert load.latency is not None
    assert load.latency.p99_ms < 200 < load.latency.max_ms


def test_arrivals_are_a_poisson_process_with_a_seed() -> None:
    arrivals = list(poisson_arrivals(100.0, 60.0, seed=1))
    gaps = np.array([b - a for a, b in pairwise(arrivals)])
    assert arrivals == list(poisson_arrivals(100.0, 60.0, seed=1)) != list(poisson_arrivals(100.0, 60.0, seed=2))
    assert 0 <= arrivals[0] < arrivals[-1] < 60
    assert len(arrivals) == pytest.approx(6_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "exponential"


def test_what_is_no_full_answer_is_counted_apart() -> None:
    """Eight requests in a row: full, partial, shed, failed, three without a whole answer, full."""
    replies: list[Reply | bytes] = [(200, FULL), (200, PARTIAL), (503, b"{}"), (500, b"{}")]
    replies += [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"no HTTP\r\n\r\n", (200, FULL)]
    with listening(Stub(lambda number, *_: replies[number])) as stub:
        found = run(Plan(stub.url, PATHS, requests=8, warm_up=0))
        assert stub.connections == 4, "a connection that broke is not used again"
    assert (found.requests, found.degraded, found.shed, found.failed) == (8, 1, 1, 4)
    assert found.latency is not None
    assert found.latency.n == 2
    assert found.lost_share == 0.75


def test_a_request_without_an_answer_ends_at_its_limit() -> None:
    with listening(Stub(pauses={0: 1.0})) as stub:
        found = run(Plan(stub.url, PATHS, requests=1, warm_up=0, timeout_s=0.05))
    assert (found.failed, found.latency) == (1, None)
    assert found.seconds < 0.9


@pytest.mark.parametrize("clients", [1, 4])
def test_clients_keep_their_connections(clients: int) -> None:
    with listening(Stub(pauses={0: 0.05})) as stub:
        found = run(Plan(stub.url, PATHS, clients=clients, requests=50, warm_up=0))
        assert (stub.connections, stub.requests, found.requests) == (clients, 50, 50)
    with pytest.raises(ConnectionRefusedError):
        run(Plan("http://127.0.0.1:9", PATHS))


def test_wrk_agrees(tmp_path: Path) -> None:
    """The outside witness: over a service that takes 10 ms a request, both count the same."""
    wrk = binary("wrk", "wrk")
    script = tmp_path / "paths.lua"
    paths = ", ".join(map(json.dumps, PATHS))
    script.write_text(
        f"local paths, at = {{{paths}}}, 0\n"
        'request = function() at = at + 1; return wrk.format("GET", paths[(at - 1) % #paths + 1]) end\n'
        'done = function(_, latency) io.write(string.format("P50 %f\\n", latency:percentile(50) / 1e3)) end\n'
    )
    with listening(Stub(pauses=dict.fromkeys(range(2_000), 0.01))) as stub, generator() as generate:
        ours = generate(Plan(stub.url, PATHS, seconds=2.0))
        command = [str(wrk), "-t1", "-c1", "-d2s", "-s", str(script), stub.url]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    p50_ms, rate = (float(re.search(rf"{name} +(\S+)", printed)[1]) for name in ("P50", "Requests/sec:"))  # type: ignore[index]
    assert ours.latency is not None
    assert ours.latency.p50_ms == pytest.approx(p50_ms, rel=0.15)
    assert ours.answered_per_s == pytest.approx(rate, rel=0.15)
