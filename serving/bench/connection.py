"""One keep-alive HTTP/1.1 connection that costs little: the load generator's side of the wire.

Stage: serving (benchmark). In: the bytes of a request. Out: an `Answer`. Absent: pipelining, redirects, TLS, and any
meaning of the body. A full client costs 0.5 to 1 ms a request, which would be measured as the service's.
"""

import asyncio
from dataclasses import dataclass
from typing import cast

MAX_HEAD = 65_536


class BrokenAnswerError(Exception):
    """What came back is not an HTTP/1.1 answer, or ended before it was whole."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`head`: status line and header lines, lower-case. `keep_alive`: the connection may be asked again."""

    status: int
    head: bytes
    body: bytes
    keep_alive: bool

    def header(self, name: str) -> str | None:
        """The first header of that name, None where there is none."""
        value = _header(self.head, name.lower().encode())
        return None if value is None else value.decode("latin-1")


def request_bytes(
    method: str, path: str, host: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> bytes:
    """A whole request. A body is sent with its length, as JSON unless the headers say otherwise."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        if not any(name.lower() == "content-type" for name in headers or ()):
            lines.append("Content-Type: application/json")
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class AnswerReader:
    """Bytes in, answers out; at most one answer is on its way at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def begun(self) -> bool:
        """Whether part of an answer is there."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Answer | None:
        """The answer once it is whole. Raises BrokenAnswerError."""
        self._buffer += data
        return self._take(at_end=False)

    def end(self) -> Answer | None:
        """The peer has closed: the answer that only that ends, None where nothing had begun. Raises BrokenAnswerError
        in the middle of one."""
        if not self.begun:
            return None
        answer = self._take(at_end=True)
        if answer is None:
            raise BrokenAnswerError("the connection closed in the middle of an answer")
        return answer

    def _take(self, at_end: bool) -> Answer | None:
        while True:
            stop = self._buffer.find(b"\r\n\r\n")
            if stop < 0:
                if len(self._buffer) > MAX_HEAD:
                    raise BrokenAnswerError(f"no end of the headers within {MAX_HEAD} bytes")
                return None
            head = bytes(self._buffer[:stop]).lower()
            status = _status(head)
            if status >= 200:
                break
            del self._buffer[: stop + 4]  # "100 continue" and its like announce an answer, they are none
        found = self._body(head, status, stop + 4, at_end)
        if found is None:
            return None
        body, length, delimited = found
        if len(self._buffer) > length:
            raise BrokenAnswerError("bytes follow an answer that nothing has asked for")
        self._buffer.clear()
        closing = (_header(head, b"connection") or b"").strip() == b"close" or head.startswith(b"http/1.0")
        return Answer(status, head, body, delimited and not closing)

    def _body(self, head: bytes, status: int, start: int, at_end: bool) -> tuple[bytes, int, bool] | None:
        """The body, where the answer ends in the buffer, and whether that is known without closing; None if not whole
        yet."""
        if status in (204, 304):
            return b"", start, True
        if b"chunked" in (_header(head, b"transfer-encoding") or b""):
            chunks = self._chunks(start)
            return None if chunks is None else (*chunks, True)
        length = _header(head, b"content-length")
        if length is None:
            return (bytes(self._buffer[start:]), len(self._buffer), False) if at_end else None
        if not length.isdigit():
            raise BrokenAnswerError(f"content-length is {length!r}")
        stop = start + int(length)
        return (bytes(self._buffer[start:stop]), stop, True) if len(self._buffer) >= stop else None

    def _chunks(self, at: int) -> tuple[bytes, int] | None:
        """A chunked body and where it ends; None if not whole yet."""
        body = bytearray()
        while True:
            line_end = self._buffer.find(b"\r\n", at)
            if line_end < 0:
                return None
            line = bytes(self._buffer[at:line_end]).split(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                raise BrokenAnswerError(f"a chunk's size is {line!r}") from None
            if size == 0:  # an empty line ends the trailers, of which there may be none
                stop = self._buffer.find(b"\r\n\r\n", line_end)
                return None if stop < 0 else (bytes(body), stop + 4)
            at = line_end + 2 + size + 2
            if len(self._buffer) < at:
                return None
            body += self._buffer[line_end + 2 : line_end + 2 + size]


class Connection(asyncio.Protocol):
    """Open one with `connect`. Not to be asked again before it has answered."""

    def __init__(self) -> None:
        self._reader = AnswerReader()
        self._waiting: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.usable = True

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        """Raises TimeoutError, OSError where the connection breaks, BrokenAnswerError; it is of no use afterwards."""
        if self._transport is None or not self.usable:
            raise ConnectionResetError("the connection is closed")
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        self._timer = loop.call_later(timeout_s, self._fail, TimeoutError(f"no answer within {timeout_s:g} s"))
        self._transport.write(request)
        try:
            return await self._waiting
        finally:
            self._timer.cancel()
            self._waiting = None

    def close(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class

    def data_received(self, data: bytes) -> None:
        try:
            answer = self._reader.feed(data)
        except BrokenAnswerError as error:
            self._fail(error)
            return
        if answer is not None:
            self._give(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        try:
            answer = self._reader.end() if exc is None else None
        except BrokenAnswerError as error:
            self._fail(error)
            return
        if answer is not None:
            self._give(answer)
        else:
            self._fail(exc or ConnectionResetError("the connection closed before an answer"))

    def _give(self, answer: Answer) -> None:
        self.usable = self.usable and answer.keep_alive
        if self._waiting is None or self._waiting.done():
            self.close()  # an answer to nothing
            return
        self._waiting.set_result(answer)

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


async def connect(host: str, port: int) -> Connection:
    """Raises OSError where nothing listens."""
    _, protocol = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return protocol


def _status(head: bytes) -> int:
    parts = head.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"http/1.") or not parts[1][:3].isdigit():
        raise BrokenAnswerError(f"not an HTTP/1 status line: {head[:40]!r}")
    return int(parts[1][:3])


def _header(head: bytes, name: bytes) -> bytes | None:
    at = head.find(b"\r\n" + name + b":")
    if at < 0:
        return None
    start = at + len(name) + 3
    stop = head.find(b"\r\n", start)
    return head[start : stop if stop >= 0 else len(head)].strip()
