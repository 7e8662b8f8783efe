"""Connections: uvicorn's HTTP protocol with a deadline and a size for request heads, and a limit of connections.

Whoever connects and says nothing, or half a head, must not keep others out. A head has to be complete within HEAD_S.
Where there are more connections than the process has room for, the one that has been silent longest is closed; a
connection whose request is being answered never is.
"""

import asyncio
import resource
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0
MOST_HEAD_BYTES = 64 * 1024
MOST_CONNECTIONS = 10_000


def connection_limit() -> int:
    """Half of the file descriptors that this process may have open; files and new connections need the rest."""
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, MOST_CONNECTIONS)


class LimitedProtocol(HttpToolsProtocol):
    """Leaves in a request's state when it arrived (`received`, of `time.perf_counter`) and how many requests are in
    flight with it (`in_flight`): work on the event loop begins later where others are before it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        shared = vars(self.server_state)
        self._silent: dict[LimitedProtocol, None] = shared.setdefault("silent", {})  # longest silent first
        self._limit: int = shared.setdefault("connection_limit", connection_limit())
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._await_head()
        if len(self.connections) > self._limit and self._silent:
            next(iter(self._silent)).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_ended()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self in self._silent:  # half a head
            if self._deadline is None:  # after a keep-alive pause, whose timer these data have stopped
                self._await_head()
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.abort()

    def on_headers_complete(self) -> None:
        self._head_ended()
        self.scope["state"] |= {"received": time.perf_counter(), "in_flight": len(self.tasks)}
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._silent[self] = None  # uvicorn's keep-alive timer runs from here

    def abort(self) -> None:
        self._head_ended()
        self.transport.abort()

    def _await_head(self) -> None:
        self._silent[self] = None
        self._head_bytes = 0
        self._deadline = self.loop.call_later(HEAD_S, self.abort)

    def _head_ended(self) -> None:
        self._silent.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
