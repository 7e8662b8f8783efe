"""A keep-alive HTTP/1.1 connection, without TLS, that costs little; httpx takes half a millisecond a request."""

import asyncio
import time
from dataclasses import dataclass
from typing import Self

LONGEST_IDLE_S = 3.0  # servers close idle connections after a few seconds


class BrokenResponseError(Exception):
    """What came back is not a whole HTTP/1.1 response."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes


def request_bytes(method: str, path: str, host: str, body: bytes = b"", headers: str = "") -> bytes:
    """A whole request. `headers`: more lines, each with its line end."""
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}{kind}\r\n".encode("latin-1") + body


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._used = reader, writer, time.monotonic()

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        return cls(*await asyncio.open_connection(host, port))

    @property
    def usable(self) -> bool:
        return not self._reader.at_eof() and time.monotonic() - self._used < LONGEST_IDLE_S

    async def ask(self, request: bytes, timeout_s: float) -> Response:
        """Raises OSError (a TimeoutError is one) or BrokenResponseError; close it then."""
        self._writer.write(request)
        try:
            async with asyncio.timeout(timeout_s):
                head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                response = Response(int(head[9:12]), await self._reader.readexactly(int(length)))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise BrokenResponseError(str(error)) from error
        self._used = 0.0 if b"\r\nconnection: close" in head else time.monotonic()
        return response

    def close(self) -> None:
        self._writer.close()
