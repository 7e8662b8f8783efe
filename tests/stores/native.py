"""Real servers for tests: Redis and PostgreSQL from the machine's own packages, on free ports, below /tmp.

Where a binary is missing, its tests are skipped and say what to install; with TESTS_SKIP_NOTHING=1 they fail.
A `conftest.py` that needs the fixtures imports them by name.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "TESTS_SKIP_NOTHING"
START_S = 30
MISSING: list[str] = []  # what was missing in this session, for the summary


def binary(name: str, package: str) -> Path:
    """Where a server's program is. Skips the test where it is nowhere, or fails it where servers are required."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[-3]))
    found = shutil.which(name) or (str(versions[-1]) if versions else None)
    if found:
        return Path(found)
    why = f"{name} is not installed; apt-get install {package}"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{why} ({REQUIRED}=1 asks for it)", pytrace=False)
    if why not in MISSING:
        MISSING.append(why)
    return pytest.skip(why)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Server:
    """A child process with a folder of its own; `start` returns once it answers."""

    port: int
    folder: Path

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self, command: list[str], answers: Callable[[], bool], **options: Any) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **options)
        until = time.monotonic() + START_S
        while not answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                said = (self.folder / "log").read_text(errors="replace")[-2_000:]
                raise RuntimeError(f"{command[0]} did not start:\n{said}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=START_S)
            self._process = None


class RedisServer(_Server):
    """Nothing is written to disk: what was stored is gone after `stop`."""

    def __init__(self) -> None:
        super().__init__()
        self._program = binary("redis-server", "redis-server")
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="recsys-redis-")), free_port()

    @property
    def connection(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self.folder}
        command = [str(self._program), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        self._run(command, self._answers)

    def _answers(self) -> bool:
        import redis

        with redis.Redis(port=self.port) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:  # not listening yet, or loading
                return False


class PostgresServer(_Server):
    """One cluster with a password; each `database` is a new, empty one. It refuses to run as root, so that root
    runs it as the user of the package, or as nobody."""

    USER, PASSWORD = "tester", "only for tests"

    def __init__(self) -> None:
        super().__init__()
        self._programs = binary("postgres", "postgresql").parent
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="recsys-postgres-")), free_port()
        self._owner = _unprivileged() if os.getuid() == 0 else None
        self._databases = 0

    def start(self) -> None:
        if not (self.folder / "data").exists():
            (self.folder / "password").write_text(self.PASSWORD)
            if self._owner:
                for path in (self.folder, self.folder / "password"):
                    shutil.chown(path, self._owner)
            made = ["-D", "data", "--auth=scram-sha-256", f"--username={self.USER}", "--pwfile=password", "--no-sync"]
            subprocess.run(
                [self._programs / "initdb", *made, "--encoding=UTF8", "--locale=C"],
                cwd=self.folder,
                user=self._owner,
                check=True,
                capture_output=True,
            )
        given = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        command = [str(self._programs / "postgres"), "-D", "data"]
        command += [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        self._run(command, self._answers, user=self._owner)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:  # SIGINT: fast shutdown, open sessions are ended
        super().stop(how)

    def database(self, like: str | None = None) -> str:
        """SQLAlchemy's address of a new database: empty, or a copy of the one at an address that this gave before
        (whose sessions are ended)."""
        import psycopg

        self._databases += 1
        name = f"test_{self._databases}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            template = "" if like is None else f" TEMPLATE {like.rpartition('/')[2]}"
            if like is not None:
                ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
                connection.execute(ended, [like.rpartition("/")[2]])
            connection.execute(f"CREATE DATABASE {name}{template}")
        return self._address(name).replace("postgresql://", "postgresql+psycopg://")

    def _address(self, database: str) -> str:
        password = self.PASSWORD.replace(" ", "%20")
        return f"postgresql://{self.USER}:{password}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self._address("postgres"), connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True


def _unprivileged() -> str:
    import pwd

    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"


@contextmanager
def connections_closed() -> Iterator[None]:
    """Close, at the end, what every feature store and registry made inside has opened.

    A command leaves that to the end of its process. Here the process goes on, and psycopg warns of a connection that is
    collected while it is open.
    """
    from recsys.feature_store import FeatureStore
    from recsys.registry.backend import Backend

    made: list[Any] = []

    def remembering(kind: type) -> Callable[..., None]:
        begin = kind.__init__

        def init(self: Any, *arguments: Any, **options: Any) -> None:
            begin(self, *arguments, **options)
            made.append(self)

        return init

    with pytest.MonkeyPatch.context() as patch:
        for kind in (FeatureStore, Backend):
            patch.setattr(kind, "__init__", remembering(kind))
        try:
            yield
        finally:
            for one in made:
                one.close() if isinstance(one, FeatureStore) else close_registry(one)


def close_registry(backend: Any) -> None:
    """MLflow keeps its connections to a database until the process ends."""
    if backend._client is not None and not backend.is_server:
        backend._client._tracking_client.store.engine.dispose()
        backend._client._get_registry_client().store.engine.dispose()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    yield from _running(RedisServer())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    yield from _running(PostgresServer())


def _running(server: Any) -> Iterator[Any]:
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder)
