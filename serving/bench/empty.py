"""An empty FastAPI answer in a process of its own: what HTTP alone costs on this machine, in this run.

Stage: serving (benchmark). In: nothing. Out: an address. Absent: everything that the service adds, its own middleware
included; `/healthz` has that.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

from fastapi import FastAPI

from recsys.errors import RecsysError
from serving.bench.target import free_port, stop

START_LIMIT_S = 60.0
PATH = "/"


def create_app() -> FastAPI:
    app = FastAPI()

    @app.get(PATH)
    async def empty() -> dict[str, str]:
        return {}

    return app


@contextlib.contextmanager
def empty_service() -> Iterator[str]:
    """Its address, once it answers; it stops when the block is left. Raises RecsysError where it does not start."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", f"{__name__}:create_app", "--no-access-log"]
    # Not by --fd: uvicorn takes what it inherits for a Unix socket, and answers would wait for acknowledgements.
    process = subprocess.Popen([*command, "--log-level", "error", "--port", str(port)], start_new_session=True)
    try:
        _wait(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    import httpx

    until = time.monotonic() + START_LIMIT_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}{PATH}", timeout=5, trust_env=False).status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > until:
            raise RecsysError("An empty FastAPI service did not start; without it there is nothing to compare with.")
        time.sleep(0.05)
