"""One trained home for all tests of serving; a service and a client over it for each test, its events forgotten after.

Stage: tests of serving. Absent: the world itself (`serving_world`).
"""

import shutil
from collections.abc import Iterator

import httpx
import pytest

from serving.champion import Champion
from serving.observability.metrics import Metrics
from serving.service import Service

from .serving_client import connected
from .serving_world import ServingWorld, build


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> ServingWorld:
    return build(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def loaded(world: ServingWorld) -> Iterator[Service]:
    """As `recsys serve` loads it, once."""
    service = Service.load(world.settings, Metrics())
    yield service
    service.close()
    service.store.close()


@pytest.fixture
def service(world: ServingWorld, loaded: Service) -> Iterator[Service]:
    """A fresh service over the loaded model, a day after the last event; what it records is undone."""
    shutil.rmtree(world.home.events, ignore_errors=True)
    metrics = Metrics()
    champion = Champion(world.settings, loaded.store, metrics, loaded.champion.model)
    fresh = Service(world.settings, champion, loaded.store, metrics, clock=lambda: world.end + 86_400.0)
    pushed: dict[int, object] = {}
    push, push_many = loaded.store.push_state, loaded.store.push_states

    def remember(state, seen, *, stamped):  # type: ignore[no-untyped-def]
        pushed.setdefault(state.user_id, loaded.store.online_state(state.user_id))
        push(state, seen, stamped=stamped)

    def remember_many(rows):  # type: ignore[no-untyped-def]
        for state, _ in rows:
            pushed.setdefault(state.user_id, loaded.store.online_state(state.user_id))
        push_many(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded.store, "push_state", remember)
        patch.setattr(loaded.store, "push_states", remember_many)
        yield fresh
    for before in list(pushed.values()):  # what was pending may be moved in the background still
        if before is not None:
            push(before[0], before[1], stamped=before[0].timestamps[-1])  # type: ignore[index]


@pytest.fixture
def client(world: ServingWorld, service: Service) -> Iterator[httpx.Client]:
    with connected(world.settings, service) as open_client:
        yield open_client
