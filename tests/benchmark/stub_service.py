"""A small HTTP service for tests of the benchmark: what it answers, and when it stalls, is given."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

FULL = b'{"degraded":[],"items":[{"item_id":1}]}'
PARTIAL = b'{"degraded":["ranking"],"items":[{"item_id":1}]}'
Reply = tuple[int, bytes]


@dataclass
class Stub:
    """`reply` gives status and body of a request (number, method, path, body). `pauses`: seconds by number of request
    for which the whole service stands still before it answers."""

    reply: Callable[[int, str, str, bytes], Reply | bytes] = lambda *_: (200, FULL)
    pauses: dict[int, float] = field(default_factory=dict)
    url: str = ""
    requests: int = 0
    connections: int = 0
    still_until: float = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = head.partition("Content-Length: ")[2].partition("\r\n")[0]
                method, path, _ = head.split(" ", 2)
                body = await reader.readexactly(int(length or 0))
                number, self.requests = self.requests, self.requests + 1
                now = asyncio.get_running_loop().time()
                self.still_until = max(self.still_until, now + self.pauses.get(number, 0.0))
                await asyncio.sleep(max(self.still_until - now, 0.0))
                answer = (200, b"{}") if path == "/readyz" else self.reply(number, method, path, body)
                if isinstance(answer, bytes):  # as it stands, and then nothing more
                    writer.write(answer)
                    break
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (answer[0], len(answer[1]), answer[1]))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@contextmanager
def listening(stub: Stub) -> Iterator[Stub]:
    """The stub on a free port, from a thread of its own."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stopping = asyncio.Event()

    async def run() -> None:
        async with await asyncio.start_server(stub.serve, "127.0.0.1", 0) as server:
            stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await stopping.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield stub
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


class RatedItems:
    """A service that leaves out of a user's list what the user has rated; `forgets` that so many lists long."""

    def __init__(self, forgets: int = 0) -> None:
        self.rated: dict[str, set[int]] = {}
        self.forgets, self._left = forgets, 0

    def __call__(self, _number: int, method: str, path: str, body: bytes) -> Reply:
        if method == "POST":
            rating = json.loads(body)
            self.rated.setdefault(str(rating["user_id"]), set()).add(rating["item_id"])
            self._left = self.forgets
            return 201, b"{}"
        known: set[int] = set() if self._left > 0 else self.rated.get(path.split("/")[3], set())
        self._left -= 1
        items = [{"item_id": item} for item in range(1, 500) if item not in known]
        return 200, json.dumps({"degraded": [], "items": items[:10]}).encode()
