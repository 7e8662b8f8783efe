"""Threads of the service: results, failures, an end that waits for nobody; and the circuit before a dead store."""

import subprocess
import sys
import threading
import time

import pytest

from serving.circuit import Circuit
from serving.threads import Threads


def test_results_and_failures_come_back() -> None:
    begun: list[str] = []
    threads = Threads("work", 2, lambda: begun.append(threading.current_thread().name))
    assert not begun
    assert [threads.submit(pow, n, 2).result(5) for n in range(4)] == [0, 1, 4, 9]
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(5)
    assert sorted(begun) == ["work-0", "work-1"]
    threads.close()
    threads.close()
    with pytest.raises(RuntimeError, match="threads 'work' were closed"):
        threads.submit(int)


def test_what_is_cancelled_before_its_turn_is_never_begun() -> None:
    threads, go, done = Threads("work", 1), threading.Event(), []
    first = threads.submit(go.wait, 5)
    second, third = threads.submit(done.append, 2), threads.submit(done.append, 3)
    assert second.cancel()
    go.set()
    third.result(5)
    assert first.result() is True
    assert done == [3]
    threads.close()


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    code = "import time; from serving.threads import Threads; Threads('hang', 1).submit(time.sleep, 600)"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert time.perf_counter() - started < 30


def test_a_circuit_opens_asks_once_a_pause_and_closes() -> None:
    now = [0.0]
    circuit = Circuit(threshold=3, over_s=0.0, pause_s=1.0, clock=lambda: now[0])
    assert [circuit.failed(), circuit.failed()] == [False, False]
    assert circuit.succeeded() is False  # what fails now and then is not away
    assert [circuit.failed(), circuit.failed(), circuit.open, circuit.failed(), circuit.open] == [
        *(False, False, False, True, True)
    ]
    assert [circuit.admits(), circuit.failures] == [False, 3]
    now[0] = 1.0
    assert [circuit.admits(), circuit.admits()] == [True, False]  # one finds out for all
    assert circuit.failed() is False
    now[0] = 1.9
    assert circuit.admits() is False
    now[0] = 2.0
    assert circuit.admits() is True
    assert circuit.succeeded() is True
    assert [circuit.open, circuit.failures, circuit.admits(), circuit.admits()] == [False, 0, True, True]


def test_failures_of_one_moment_do_not_open_a_circuit() -> None:
    now = [5.0]
    circuit = Circuit(threshold=3, over_s=0.5, pause_s=1.0, clock=lambda: now[0])
    assert [circuit.failed() for _ in range(10)] == [False] * 10
    now[0] = 5.4
    assert circuit.failed() is False
    circuit.succeeded()
    now[0] = 5.6
    assert [circuit.failed() for _ in range(3)] == [False] * 3
    now[0] = 6.1
    assert circuit.failed() is True
