"""One trained home for all tests of serving; for each test a service and a client over it, with an event table of its
own and a store in memory."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from recsys.events import EventTable, sqlite_url
from recsys.registry import Traffic
from serving.model_lifecycle.champion import Champion
from serving.model_lifecycle.served_model import ServedModel, registry_of
from serving.observability.metrics import Metrics
from serving.recommending.service import Service
from serving.settings import ServiceSettings

from .in_memory_store import InMemoryStore
from .serving_client import connected
from .serving_world import ServingWorld, build
from .versions import Versions


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> ServingWorld:
    return build(tmp_path_factory.mktemp("home"), feature_store=False)


@pytest.fixture(scope="session")
def model(world: ServingWorld) -> ServedModel:
    registry = registry_of(world.settings)
    store = InMemoryStore(world.states, world.timeline)
    return ServedModel.load(world.settings, store, registry, registry.resolve("champion"), world.end + 86_400)  # type: ignore[arg-type]


@pytest.fixture
def store(world: ServingWorld) -> InMemoryStore:
    return InMemoryStore(dict(world.states), world.timeline)


@pytest.fixture
def settings(world: ServingWorld, tmp_path: Path) -> ServiceSettings:
    return world.settings.model_copy(update={"events": EventTable(sqlite_url(tmp_path / "events.db"))})


@pytest.fixture
def service(
    world: ServingWorld, settings: ServiceSettings, store: InMemoryStore, model: ServedModel
) -> Iterator[Service]:
    """A day after the last event of the data set."""
    fresh = service_of(settings, store, model, world)
    yield fresh
    fresh.close()


@pytest.fixture
def client(settings: ServiceSettings, service: Service) -> Iterator[httpx.Client]:
    with connected(settings, service) as open_client:
        yield open_client


def service_of(settings: ServiceSettings, store: InMemoryStore, model: ServedModel, world: ServingWorld) -> Service:
    metrics = Metrics()
    clock = lambda: world.end + 86_400.0  # noqa: E731
    champion = Champion(settings, store, metrics, model, clock)  # type: ignore[arg-type]
    return Service(settings, champion, store, metrics, clock)  # type: ignore[arg-type]


@pytest.fixture
def versions(world: ServingWorld, tmp_path: Path) -> Iterator[Versions]:
    """The champion is the first version again afterwards, and alone."""
    registry = registry_of(world.settings)
    yield Versions(world, registry, tmp_path)
    registry.set_traffic(Traffic())
    registry.promote(1)
