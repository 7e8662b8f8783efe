"""A few threads that work through a queue, and that never keep a process alive.

Stage: serving. In: functions to call. Out: futures of their results. Absent: any bound on the queue (`admission`,
`circuit`).

Not `concurrent.futures.ThreadPoolExecutor`: Python joins its threads when a process ends, and one that hangs in a dead
store would keep the service from stopping.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Job = Callable[[], None]


class Threads:
    """`count` daemon threads, begun with the first job. `begin` is called once on each of them."""

    def __init__(self, name: str, count: int, begin: Callable[[], None] = lambda: None) -> None:
        self._name, self._count, self._begin = name, count, begin
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `work` on one of the threads, in turn. A future that is cancelled before its turn is never begun.
        Raises RuntimeError after `close`."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._lock:
            if self._closed:
                raise RuntimeError(f"the threads {self._name!r} were closed")
            if not self._threads:
                self._start()
            self._jobs.put(job)
        return future

    def close(self) -> None:
        """Take no more; what was submitted is still done, unless the process ends before. Does not wait."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)

    def _start(self) -> None:
        for number in range(self._count):
            self._threads.append(threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        self._begin()
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or what it returned would live until the next one comes
