"""Who gets a connection: of several workers, the one that has the fewest.

Stage: serving. In: a listening socket, and workers that open and close. Out: connections, each passed to a worker as a
file descriptor. Absent: processes and their restarts (`workers`), and requests: a client that keeps its connection
stays with its worker.

Workers that accept from one shared socket take what they can get: whoever wakes first had up to three quarters of the
connections, and its requests queued while the other one idled. Chance does little better (docs/adr/0026).

A worker that is stuck begins no connection, and one that has NOT_BEGUN of them is passed over. While no worker takes
any, nothing is accepted, and clients wait in the kernel's queue.
"""

import asyncio
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from ctypes import Structure, c_bool, c_long
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawValue
from typing import Any, Final

BACKLOG: Final = 2_048  # connections that the kernel holds for us
LOOK_S: Final = 0.05  # how often it is looked whether a worker opened or closed
CATCH_UP_S: Final = 0.005  # before it is looked whether a worker has begun what it was given
NOT_BEGUN: Final = 16  # connections on their way to one worker; its event loop takes each within milliseconds
TOLD_S: Final = 1.0  # how long a worker that closes waits for what is on its way
log = logging.getLogger(__name__)


class _Seat(Structure):
    """Shared by the dispatcher and one worker, and written by the worker alone, so that nothing is locked.

    takes  the worker wants connections
    begun  connections that have reached it, ever
    ended  those of them that it has no more
    """

    _fields_ = [("takes", c_bool), ("begun", c_long), ("ended", c_long)]


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
        self._seat.begun += len(said)
        if said and not descriptors:
            log.warning("a connection was lost: this worker has no file descriptor left; raise `ulimit -n`")
            self._seat.ended += 1
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
    """The dispatcher's side of one worker.

    handed  connections that it was ever given
    on_way  those of them that had not begun when it was looked last, the oldest first
    """

    channel: socket.socket
    seat: Any
    handed: int = 0
    opened: bool = False
    on_way: deque[socket.socket] = field(default_factory=deque)

    @property
    def has(self) -> int:
        return self.handed - int(self.seat.ended)

    def give(self, connection: socket.socket) -> bool:
        """False where it has just died. `connection` is kept until it has begun."""
        try:
            socket.send_fds(self.channel, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self.handed += 1
        self.on_way.append(connection)
        return True

    def let_go(self) -> None:
        """Close here what has begun there: both copies must be closed before a client notices."""
        while len(self.on_way) > self.handed - int(self.seat.begun):
            self.on_way.popleft().close()


class Dispatcher:
    """Accepts on a thread of its own from the moment when the first worker opens. `listening` is bound; the dispatcher
    closes it."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._workers: dict[Intake, _Worker] = {}
        self._waiting: deque[socket.socket] = deque()  # accepted, and nobody's
        self._lock = threading.Lock()  # of both
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
        """The worker is gone. What had not reached it goes to another one."""
        with self._lock:
            worker = self._workers.pop(intake, None)
            if worker is not None:
                worker.channel.close()
                worker.let_go()
                self._waiting.extend(worker.on_way)

    @property
    def ended(self) -> bool:
        """Nobody is accepted any more."""
        return not self._thread.is_alive()

    def drain(self) -> None:
        """Go on until no worker is open, then close the listening socket: a client that comes then is refused."""
        self._draining = True

    def close(self) -> None:
        self._stopped = True
        self._thread.join()

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
                if self._waiting or self._somebody_comes(workers):
                    takers = [worker for worker in workers if worker.handed - int(worker.seat.begun) < NOT_BEGUN]
                    if takers:
                        self._hand_over(takers)
                    else:
                        time.sleep(CATCH_UP_S)
        finally:  # a worker waits for this when it closes
            self._listening.close()
            for intake in list(self._workers):
                self.forget(intake)
            for connection in self._waiting:
                connection.close()

    def _open_workers(self) -> list[_Worker]:
        """Those that want connections. The channel of one that wants no more is closed, which it waits for: it begins
        what is in it."""
        with self._lock:
            for intake, worker in list(self._workers.items()):
                worker.let_go()
                takes = bool(worker.seat.takes)
                if worker.opened and not takes:
                    del self._workers[intake]
                    worker.channel.close()
                    for connection in worker.on_way:
                        connection.close()
                worker.opened = takes
            return [worker for worker in self._workers.values() if worker.opened]

    def _somebody_comes(self, workers: list[_Worker]) -> bool:
        patience = CATCH_UP_S if any(worker.on_way for worker in workers) else LOOK_S
        return bool(select.select([self._listening], [], [], patience)[0])

    def _hand_over(self, workers: list[_Worker]) -> None:
        """The oldest that waits, or whoever comes, to the worker with the fewest; of several, to the one that was given
        fewer so far."""
        try:
            connection = self._waiting.popleft() if self._waiting else self._listening.accept()[0]
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor left, or the client is gone
            log.warning("a connection was not accepted: %s", error)
            time.sleep(LOOK_S)
            return
        with self._lock:  # or a worker forgotten meanwhile would keep it
            given = any(worker.give(connection) for worker in sorted(workers, key=lambda w: (w.has, w.handed)))
        if not given:
            self._waiting.append(connection)
            time.sleep(CATCH_UP_S)  # until it is told which worker is gone
