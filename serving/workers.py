"""The processes of the service: one, or several behind one port; how they start, drain and stop.

Stage: serving. In: `Start`, a bound socket. Out: a service until SIGTERM or Ctrl-C; then answers that were begun are
ended, and the process exits with 0. Absent: the app (`app`), and restarts of a whole machine.

Workers are spawned, never forked: after any parallel region a forked child hangs in FAISS, LightGBM and torch alike.
What they share: the port, whose connections they are given evenly (`dispatch`), the files of the bundle as the page
cache holds them, the online store, the event log under `store.locks`, and a folder of metrics. What each has of its
own: its model and when it follows the alias, its queue, its rate limits (a client may get the rate once from each), and
last known states.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_bool
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

import uvicorn
from fastapi import FastAPI

from recsys.errors import RecsysError
from serving.app import create_app
from serving.dispatch import Dispatcher, Intake, OpenIntake
from serving.observability import logs
from serving.observability.metrics import Metrics
from serving.service import Service
from serving.settings import ServiceSettings

CANNOT_START = 3  # exit code of a worker whose model cannot be loaded; while none ever was, none will be
LAST_RESORT_S = 10.0  # after the limit for a graceful stop; then a worker is killed
SHORT_LIFE_S = 30.0
SHORT_LIVES = 3  # of workers, in a row; then something is wrong that a restart does not mend
FIRST_READY_S = 30.0  # how long a worker that has loaded waits for the first one
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # before another worker is tried where one could not start; they double
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a worker is told; it is pickled, and travels through a pipe: what is secret in `settings` stands in nobody's
    argv.

    alone  no other worker listens
    ready  shared by all workers; the first whose model is loaded makes it true. Without a lock, which a worker that
           is killed could leave held
    """

    settings: ServiceSettings
    log_format: str = "text"
    log_level: str = "info"
    alone: bool = True
    ready: c_bool | None = None

    def configure_logs(self) -> None:
        key = self.settings.api_key
        logs.configure(self.log_format, self.log_level, [] if key is None else [key.get_secret_value()])


class Server(uvicorn.Server):
    """Goes on for `drain_s` once it is told to stop: `/readyz` says no, and each answer closes its connection, so that
    clients leave before the door is shut. Connections come from a listening socket, or from an intake."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_s: float, intake: Intake | None = None) -> None:
        super().__init__(config)
        self._app, self._drain_s, self._intake = app, drain_s, intake
        self._open: OpenIntake | None = None
        if intake is not None:
            self.server_state.connections = intake.connections()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._intake is not None:
            self._open = await self._intake.open(self._protocol)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.draining = True
        if not self.force_exit:
            await asyncio.sleep(self._drain_s)
        if self._open is not None:
            await self._open.close()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes one for each connection that it accepts itself."""
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


def serve(start: Start, connections: socket.socket | Intake) -> None:
    """Serve in this process until it is told to stop, whoever comes to the listening socket or through the intake.
    Raises what kept the model from being loaded."""
    settings = start.settings
    failures: list[Exception] = []

    def stop(error: Exception | None = None) -> None:
        if error is not None:
            failures.append(error)
        server.should_exit = True

    def load(settings: ServiceSettings, metrics: Metrics) -> Service:
        service = Service.load(settings, metrics)
        if not start.alone:
            _wait_for_first(start.ready)
        if start.ready is not None:
            start.ready.value = True
        return service

    metrics = Metrics()
    if start.alone:
        app = create_app(settings, load, on_failure=stop, metrics=metrics)
    else:  # listening while it loads, it would take connections from the others, only to refuse
        with _told_to_stop(sys.exit):
            loaded = load(settings, metrics)
        app = create_app(settings, lambda *_: loaded, on_failure=stop, metrics=metrics)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # uvicorn would believe X-Forwarded-For of whoever connects from this machine
        ws="none",
        lifespan="on",
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    intake = connections if isinstance(connections, Intake) else None
    server = Server(config, app, settings.drain_s, intake)
    with _told_to_stop(stop):
        server.run(sockets=[connections] if isinstance(connections, socket.socket) else [])
    if app.state.service is not None:
        app.state.service.store.close()
    if failures:
        raise failures[0]


def _wait_for_first(ready: c_bool | None) -> None:
    """Until a worker is ready that has listened from the beginning: whoever is told by one worker that the service is
    ready may reach another next. It may also have died."""
    until = time.monotonic() + FIRST_READY_S
    while ready is not None and not ready.value and time.monotonic() < until:
        time.sleep(0.05)


def supervise(start: Start, listening: socket.socket, workers: int) -> None:
    """Serve in `workers` processes until told to stop. One that dies is replaced; where the new one cannot start, as
    while the store is away, the others go on and it is tried again. Raises RecsysError where none can start, or they
    die as soon as they have."""
    stopping = threading.Event()
    with tempfile.TemporaryDirectory(prefix="recsys-metrics-") as folder, _told_to_stop(stopping.set):
        ready = multiprocessing.get_context("spawn").RawValue(c_bool)
        told = replace(start, ready=ready)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # the workers inherit it and share their metrics there
        dispatcher = Dispatcher(listening)
        running: dict[SpawnProcess, tuple[Intake, float]] = {}
        short_lives, trouble = 0, ""
        pause_s, again_at = FIRST_PAUSE_S, 0.0
        try:
            while not stopping.is_set() and not trouble:
                while len(running) < workers and time.monotonic() >= again_at:
                    intake = dispatcher.intake()
                    running[_spawn(replace(told, alone=not running), intake)] = intake, time.monotonic()
                    dispatcher.release(intake)
                wait([process.sentinel for process in running], timeout=0.2)
                if dispatcher.ended:
                    trouble = "The thread that accepts connections ended; the log above says why."
                for process in [p for p in running if p.exitcode is not None]:
                    intake, since = running.pop(process)
                    lived_s = time.monotonic() - since
                    dispatcher.forget(intake)
                    if stopping.is_set():
                        break
                    log.error("worker %s ended with exit code %s after %.0f s", process.pid, process.exitcode, lived_s)
                    if process.exitcode == CANNOT_START:
                        if not ready.value:
                            trouble = "A worker could not load its model; its log line above says why."
                        elif time.monotonic() >= again_at:  # of several that fail together, the first sets the pause
                            log.error("%d worker(s) go on; another is tried in %g s", len(running), pause_s)
                            again_at, pause_s = time.monotonic() + pause_s, min(2 * pause_s, LONGEST_PAUSE_S)
                        continue
                    short_lives += 1
                    if lived_s >= SHORT_LIFE_S:
                        short_lives, pause_s = 0, FIRST_PAUSE_S
                    if short_lives >= SHORT_LIVES:
                        trouble = (
                            f"{SHORT_LIVES} workers in a row ended within {SHORT_LIFE_S:g} s; the log above says more."
                        )
        finally:
            dispatcher.drain()
            _stop_all(list(running), start.settings)
            dispatcher.close()
            del os.environ["PROMETHEUS_MULTIPROC_DIR"]
    if trouble:
        raise RecsysError(trouble)


def _spawn(start: Start, intake: Intake) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(start, intake), name="recsys-worker")
    process.start()
    return process


def _work(start: Start, intake: Intake) -> None:
    """A worker, from beginning to end."""
    start.configure_logs()
    threading.Thread(target=_stop_with_parent, name="watch-parent", daemon=True).start()
    try:
        serve(start, intake)
    except RecsysError as error:
        log.error("%s", error)
        sys.exit(CANNOT_START)


def _stop_with_parent() -> None:
    """A worker whose supervisor was killed must not go on alone, on a port that nobody owns."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)


def _stop_all(processes: list[SpawnProcess], settings: ServiceSettings) -> None:
    for process in processes:
        process.terminate()
    until = time.monotonic() + settings.drain_s + settings.shutdown_s + LAST_RESORT_S
    for process in processes:
        process.join(max(until - time.monotonic(), 0.0))
        if process.exitcode is None:
            log.error("worker %s did not stop in time and is killed", process.pid)
            process.kill()
            process.join()


@contextmanager
def _told_to_stop(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C call `stop`, and do nothing else: uvicorn raises them again when it has stopped, which would
    end the process by the signal. Outside of the main thread, as in tests, signals are left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
