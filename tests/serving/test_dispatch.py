"""Connections go to the worker that has the fewest, and none is lost when a worker opens, closes, dies or hangs."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving.dispatch import NOT_BEGUN, Dispatcher, Intake, OpenIntake

LIMIT_S = 20.0


class Echo(asyncio.Protocol):
    """Answers its worker's name to whatever it hears; counted as uvicorn's protocols are."""

    def __init__(self, name: bytes, connections: set[Any]) -> None:
        self.name, self.connections = name, connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.connections.add(self)

    def data_received(self, _data: bytes) -> None:
        assert isinstance(self.transport, asyncio.WriteTransport)
        self.transport.write(self.name)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.connections.discard(self)
        self.connections.discard(self)  # a second time counts nothing


class Worker:
    """An event loop on a thread, with an intake."""

    def __init__(self, intake: Intake, name: bytes) -> None:
        self.intake, self.name = intake, name
        self.connections = intake.connections()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self._open: OpenIntake | None = None

    def do(self, work: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(LIMIT_S)

    def open(self) -> None:
        self._open = self.do(lambda: self.intake.open(lambda: Echo(self.name, self.connections)))

    def close(self) -> None:
        if self._open is not None:
            self.do(self._open.close)
            self._open = None

    def die(self) -> None:
        """As far as the dispatcher sees it: the channel is closed, as the kernel does when a process ends."""

        async def gone() -> None:
            self.loop.remove_reader(self.intake.channel)
            self.intake.channel.close()

        self.do(gone)
        self._open = None

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT_S)
        self.loop.close()
        self.intake.channel.close()


class House:
    """A dispatcher with workers, and clients that come to it."""

    def __init__(self) -> None:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.address = listening.getsockname()
        self.listening = listening
        self.dispatcher = Dispatcher(listening)
        self.workers: list[Worker] = []
        self.clients: list[socket.socket] = []

    def worker(self, name: bytes, *, opens: bool = True) -> Worker:
        worker = Worker(self.dispatcher.intake(), name)
        self.workers.append(worker)
        if opens:
            worker.open()
            self.wait(lambda: self.dispatcher._workers[worker.intake].opened)
        return worker

    def client(self) -> socket.socket:
        client = socket.create_connection(self.address, timeout=LIMIT_S)
        self.clients.append(client)
        return client

    def comes(self) -> bytes:
        """The name of the worker that a new client reaches."""
        client = self.client()
        client.sendall(b"?")
        return client.recv(1)

    @staticmethod
    def wait(true: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT_S
        while not true():
            assert time.monotonic() < until
            time.sleep(0.005)

    def has(self, worker: Worker) -> int:
        return self.dispatcher._workers[worker.intake].has

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for worker in self.workers:
            worker.close()
        self.dispatcher.close()
        for worker in self.workers:
            self.wait(lambda worker=worker: not worker.connections)  # type: ignore[misc]
            worker.end()


@pytest.fixture
def house() -> Iterator[House]:
    with contextlib.closing(House()) as house:
        yield house


def test_connections_are_even_and_stay_so_when_some_end(house: House) -> None:
    a, b = house.worker(b"a"), house.worker(b"b")
    names = [house.comes() for _ in range(10)]
    assert sorted(names) == [b"a"] * 5 + [b"b"] * 5

    ended = [client for client, name in zip(house.clients, names, strict=True) if name == b"a"][:3]
    for client in ended:
        client.close()
    house.wait(lambda: house.has(a) == 2)
    assert [house.comes() for _ in range(3)] == [b"a"] * 3
    house.wait(lambda: (house.has(a), house.has(b)) == (5, 5))


def test_clients_wait_until_a_worker_opens_again(house: House) -> None:
    a = house.worker(b"a")
    assert house.comes() == b"a"
    a.close()
    waiting = house.client()
    waiting.sendall(b"?")
    b = house.worker(b"b", opens=False)
    waiting.settimeout(0.3)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    b.open()
    waiting.settimeout(LIMIT_S)
    assert waiting.recv(1) == b"b"


def test_nobody_is_accepted_before_the_first_worker_opens(house: House) -> None:
    house.worker(b"a", opens=False)
    with pytest.raises(ConnectionRefusedError):
        house.client()


def test_a_worker_that_closes_begins_what_was_on_its_way(house: House) -> None:
    a = house.worker(b"a")
    stuck = threading.Event()
    a.loop.call_soon_threadsafe(stuck.wait, LIMIT_S)
    clients = [house.client() for _ in range(5)]
    for client in clients:
        client.sendall(b"?")
    house.wait(lambda: house.has(a) == 5)
    closing = asyncio.run_coroutine_threadsafe(a._open.close(), a.loop) if a._open else None
    stuck.set()
    assert closing is not None
    closing.result(LIMIT_S)
    a._open = None
    assert [client.recv(1) for client in clients] == [b"a"] * 5


def test_a_worker_that_is_stuck_is_passed_over_and_goes_on_when_it_is_not(house: House) -> None:
    a, b = house.worker(b"a"), house.worker(b"b")
    stuck = threading.Event()
    a.loop.call_soon_threadsafe(stuck.wait, LIMIT_S)
    clients = [house.client() for _ in range(2 * NOT_BEGUN + 8)]
    house.wait(lambda: house.has(a) + house.has(b) == len(clients))
    assert house.has(a) == NOT_BEGUN
    for client in clients:
        client.sendall(b"?")
    stuck.set()
    names = [client.recv(1) for client in clients]
    assert (names.count(b"a"), names.count(b"b")) == (NOT_BEGUN, NOT_BEGUN + 8)
    assert [house.comes() for _ in range(8)] == [b"a"] * 8


def test_while_all_workers_are_stuck_clients_wait_in_the_kernels_queue(house: House) -> None:
    a = house.worker(b"a")
    stuck = threading.Event()
    a.loop.call_soon_threadsafe(stuck.wait, LIMIT_S)
    clients = [house.client() for _ in range(3 * NOT_BEGUN)]
    for client in clients:
        client.sendall(b"?")
    house.wait(lambda: house.has(a) == NOT_BEGUN)
    stuck.set()
    assert [client.recv(1) for client in clients] == [b"a"] * len(clients)


def test_clients_that_come_one_after_the_other_meet_the_workers_in_turn(house: House) -> None:
    house.worker(b"a"), house.worker(b"b")
    met = []
    for _ in range(6):
        met.append(house.comes())
        house.clients.pop().close()
        house.wait(lambda: all(house.has(worker) == 0 for worker in house.workers))
    assert met == [b"a", b"b"] * 3


def test_a_worker_that_died_is_passed_over(house: House) -> None:
    a, b = house.worker(b"a"), house.worker(b"b")
    a.die()
    assert [house.comes() for _ in range(4)] == [b"b"] * 4
    house.dispatcher.forget(a.intake)
    assert house.comes() == b"b"
    house.wait(lambda: house.has(b) == 5)


def test_a_connection_waits_where_the_only_worker_has_died(house: House) -> None:
    a = house.worker(b"a")
    a.die()
    client = house.client()
    client.sendall(b"?")
    house.dispatcher.forget(a.intake)
    house.worker(b"b")
    assert client.recv(1) == b"b"


def test_what_had_not_reached_a_worker_that_dies_goes_to_another(house: House) -> None:
    a, b = house.worker(b"a"), house.worker(b"b")
    stuck = threading.Event()
    a.loop.call_soon_threadsafe(stuck.wait, LIMIT_S)
    clients = [house.client() for _ in range(6)]
    for client in clients:
        client.sendall(b"?")
    house.wait(lambda: (house.has(a), house.has(b)) == (3, 3))
    house.dispatcher.forget(a.intake)
    assert [client.recv(1) for client in clients] == [b"b"] * 6
    socket.recv_fds(a.intake.channel, 1, 1)  # else its copy would keep the connection open
    stuck.set()
    a._open = None


def test_a_client_notices_at_once_that_its_connection_was_closed(house: House) -> None:
    a = house.worker(b"a")
    client = house.client()
    house.wait(lambda: len(a.connections) == 1)
    (protocol,) = a.connections
    a.loop.call_soon_threadsafe(protocol.transport.close)
    assert client.recv(1) == b""


def test_a_worker_without_descriptors_says_so_and_is_not_shunned_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a = house.worker(b"a")
    real = socket.recv_fds

    def cut_off(channel: socket.socket, size: int, most: int) -> tuple[bytes, list[int], int, Any]:
        """As the kernel answers a process that has no descriptor left."""
        said, descriptors, flags, address = real(channel, size, most)
        for descriptor in descriptors:
            os.close(descriptor)
        return said, [], flags | socket.MSG_CTRUNC, address

    with monkeypatch.context() as at_the_limit:
        at_the_limit.setattr(socket, "recv_fds", cut_off)
        assert house.client().recv(1) == b""
        house.wait(lambda: house.has(a) == 0)
    assert "no file descriptor left" in caplog.text
    assert house.comes() == b"a"


def test_drained_it_refuses_once_the_last_worker_has_closed(house: House) -> None:
    a, b = house.worker(b"a"), house.worker(b"b")
    house.dispatcher.drain()
    a.close()
    assert house.comes() == b"b"
    b.close()
    house.wait(lambda: house.listening.fileno() == -1)
    with pytest.raises(ConnectionRefusedError):
        house.client()


def test_a_worker_goes_on_to_close_without_its_dispatcher(house: House, caplog: pytest.LogCaptureFixture) -> None:
    a = house.worker(b"a")
    house.dispatcher.close()  # as if the process had been killed: its ends are closed
    a.close()
    assert "did not answer" not in caplog.text

    other = House()
    b = other.worker(b"b")
    with other.dispatcher._lock:  # it hangs
        b.close()
    assert "did not answer within 1 s" in caplog.text
    other.close()
