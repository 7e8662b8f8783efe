"""Who gets a connection: of several workers, the one that has the fewest.

Stage: serving. In: a listening socket, and workers that open and close. Out: connections, each passed to a worker as a
file descriptor. Absent: processes and their restarts (`workers`), and requests: a client that keeps its connection
stays with its worker.

Workers that accept from one shared socket take what they can get: whoever wakes first had up to three quarters of the
connections, and its requests queued while the other one idled. Chance does little better (docs/adr/0026).

A worker that is stuck ends no connection, so it soon has the most and is given no more.
"""

import asyncio
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from ctypes import Structure, c_bool, c_long
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from typing import Any, Final

BACKLOG: Final = 2_048  # connections that the kernel holds for us
LOOK_S: Final = 0.05  # how often it is looked whether a worker opened or closed
TOLD_S: Final = 1.0  # how long a worker that closes waits for what is on its way
log = logging.getLogger(__name__)


class _Seat(Structure):
    """Shared by the dispatcher and one worker, and written by the worker alone, so that nothing is locked.

    takes  the worker wants connections
    ended  connections that it had and has no more
    """

    _fields_ = [("takes", c_bool), ("ended", c_long)]


@dataclass(frozen=True, eq=False)
class Intake:
    """The worker's end. It is pickled and travels to the process that serves."""

    channel: socket.socket
    seat: Any

    async def open(self, protocol: Callable[[], asyncio.Protocol]) -> "OpenIntake":
        """Take connections from now on, on the running loop, a `protocol()` for each."""
        return OpenIntake(self, protocol, asyncio.get_running_loop())

    def connections(self) -> "set[Any]":
        """A set for uvicorn to keep its connections in, which tells the dispatcher of those that ended."""
        return _Connections(self.seat)


class OpenIntake:
    """Takes connections until it is closed."""

    def __init__(
        self, intake: Intake, protocol: Callable[[], asyncio.Protocol], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._channel, self._seat = intake.channel, intake.seat
        self._protocol, self._loop = protocol, loop
        self._all_here = asyncio.Event()  # the dispatcher has closed its end
        self._beginning: set[asyncio.Task[None]] = set()
        self._channel.setblocking(False)
        loop.add_reader(self._channel, self._take)
        self._seat.takes = True

    async def close(self) -> None:
        """Want no more connections, and begin those that were on their way."""
        self._seat.takes = False
        try:
            await asyncio.wait_for(self._all_here.wait(), TOLD_S)
        except TimeoutError:
            log.warning("the dispatcher did not answer within %g s; connections may be lost", TOLD_S)
            self._loop.remove_reader(self._channel)
        if self._beginning:
            await asyncio.wait(self._beginning)
        self._channel.close()

    def _take(self) -> None:
        try:
            said, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        except BlockingIOError:
            return
        except OSError:  # the dispatcher was killed
            said, descriptors = b"", []
        for descriptor in descriptors:
            task = self._loop.create_task(self._begin(socket.socket(fileno=descriptor)))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)
        if not said:
            self._loop.remove_reader(self._channel)
            self._all_here.set()

    async def _begin(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as error:  # it went before it began
            log.debug("a connection did not begin: %s", error)
            connection.close()
            self._seat.ended += 1


class _Connections(set[Any]):
    """uvicorn adds a connection once and discards it once."""

    def __init__(self, seat: Any) -> None:
        super().__init__()
        self._seat = seat

    def discard(self, connection: Any) -> None:
        if connection in self:
            self._seat.ended += 1
        super().discard(connection)


@dataclass
class _Worker:
    """The dispatcher's side of one worker. handed: connections that it was ever given."""

    channel: socket.socket
    seat: Any
    handed: int = 0
    opened: bool = False

    @property
    def has(self) -> int:
        return self.handed - int(self.seat.ended)


class Dispatcher:
    """Accepts on a thread of its own from the moment when the first worker opens; before, and while none is open,
    clients wait in the kernel's queue. `listening` is bound; the dispatcher closes it."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._workers: dict[Intake, _Worker] = {}
        self._lock = threading.Lock()  # of `_workers`
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="dispatch", daemon=True)
        self._thread.start()

    def intake(self) -> Intake:
        """For one more worker. Whoever has passed it on must `release` it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        intake = Intake(theirs, RawValue(_Seat))
        with self._lock:
            self._workers[intake] = _Worker(ours, intake.seat)
        return intake

    @staticmethod
    def release(intake: Intake) -> None:
        """Close this process's copy of the worker's end, so that the end of the worker shows."""
        intake.channel.close()

    def forget(self, intake: Intake) -> None:
        """The worker is gone."""
        with self._lock:
            worker = self._workers.pop(intake, None)
        if worker is not None:
            worker.channel.close()

    def drain(self) -> None:
        """Go on until no worker is open, then close the listening socket: a client that comes then is refused."""
        self._draining = True

    def close(self) -> None:
        self._stopped = True
        self._thread.join()
        for intake in list(self._workers):
            self.forget(intake)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        listens = False
        try:
            while not self._stopped:
                workers = self._open_workers()
                if not workers:
                    if self._draining:
                        return
                    time.sleep(LOOK_S)
                    continue
                if not listens:
                    self._listening.setblocking(False)
                    self._listening.listen(BACKLOG)
                    listens = True
                if select.select([self._listening], [], [], LOOK_S)[0]:
                    self._accept(workers)
        finally:
            self._listening.close()

    def _open_workers(self) -> list[_Worker]:
        """Those that want connections; the channel of one that wants no more is closed, which it waits for."""
        with self._lock:
            workers = dict(self._workers)
        for intake, worker in workers.items():
            takes = bool(worker.seat.takes)
            if worker.opened and not takes:
                self.forget(intake)
            worker.opened = takes
        return [worker for worker in workers.values() if worker.opened]

    def _accept(self, workers: list[_Worker]) -> None:
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor left, or the client is gone
            log.warning("a connection was not accepted: %s", error)
            time.sleep(LOOK_S)
            return
        with connection:
            for worker in sorted(workers, key=lambda worker: worker.has):
                try:
                    socket.send_fds(worker.channel, [b"c"], [connection.fileno()])
                except OSError:  # it has just died, or it is stuck and its channel is full
                    continue
                worker.handed += 1
                return
            log.warning("no worker took a connection; it is closed")
