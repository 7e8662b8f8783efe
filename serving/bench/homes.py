"""A home of its own for an experiment: what serving needs of a trained home, copied, with a registry of its own.

Stage: serving (benchmark, soak). In: a trained home and the bundles that shall be registered. Out: `ServiceSettings`
of a temporary home. Absent: training; and any write to the home that it came from.

The feature store keeps absolute paths and a project named after its home, so that it is registered anew, and the
online store is filled again: wholly, or with the users that will be asked for. It is SQLite in that home, or a Redis
that was started for the purpose.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recsys.errors import RecsysError
from recsys.feature_store import FeatureStore
from recsys.features.state import UserState
from recsys.registry import Registry, model_name_for
from recsys.workspace import Workspace
from serving.settings import ServiceSettings

REDIS_START_S = 20.0


@contextmanager
def temporary_home(settings: ServiceSettings, redis_connection: str | None = None) -> Iterator[ServiceSettings]:
    """The data set's tables in a folder that is gone afterwards; no feature store and no registry yet.

    The online store will be SQLite there, or the Redis at `redis_connection`.
    """
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        home = Workspace(Path(folder)).dataset(settings.home.name)
        for place in ("data", "features"):
            shutil.copytree(getattr(settings.home, place), getattr(home, place))
        Workspace(Path(folder)).remember(home.name)
        store = settings.feature_store
        changed = type(store)(
            home=home,
            repo=store.repo,
            online_store="redis" if redis_connection else "sqlite",
            redis_connection=redis_connection,
        )
        yield settings.model_copy(
            update={
                "home": home,
                "feature_store": changed,
                "registry_folder": Workspace(Path(folder)).mlflow,
                "tracking_uri": None,
            }
        )


@contextmanager
def own_redis(wanted: bool = True) -> Iterator[str | None]:
    """A Redis on a free port of this machine, which logs what it is told every second, as in docker-compose.yml; its
    address. None where it is not `wanted`. Raises RecsysError where it does not start."""
    if not wanted:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="recsys-bench-redis-") as folder:
        given = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        program = shutil.which("redis-server") or "redis-server"  # where it is missing, starting it says so
        try:
            process = subprocess.Popen(
                [program, *options],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise RecsysError(f"redis-server cannot be started: {error.strerror}. Install redis-server.") from error
        try:
            until = time.monotonic() + REDIS_START_S
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > until:
                    raise RecsysError(f"redis-server did not start on port {port}.")
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def fill_store(settings: ServiceSettings, states: Sequence[tuple[UserState, Sequence[int]]] | None = None) -> None:
    """Register the features, and put the given users' states and seen items into the online store; everybody's where
    `states` is None, which takes seconds a thousand users and items."""
    store = FeatureStore(settings.feature_store)
    try:
        store.apply()
        if states is None:
            store.materialize()
        for state, seen_ids in states or ():
            store.push_state(state, seen_ids, stamped=max(state.timestamps, default=1))
    finally:
        store.close()


def register(settings: ServiceSettings, bundles: Sequence[Path]) -> list[int]:
    """Register bundles in the home's registry and make the first the champion; their versions."""
    registry = registry_of(settings)
    versions = [registry.register(folder).version for folder in bundles]
    registry.promote(versions[0])
    return versions


def registry_of(settings: ServiceSettings) -> Registry:
    return Registry(settings.tracking_uri, settings.registry_folder, model_name_for(settings.home.name))
