"""Worlds that several modules read and none changes, and the stores that the same tests run on."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.stores.native import postgres_server, redis_server

from .feature_worlds import DAY, T0, World, build, random_events

# Somebody in the middle of a history with two ratings in one second; somebody later; somebody ten years earlier.
PLANTED = [
    (1, 3, 4.0, T0 + 100),
    (1, 1, 5.0, T0 + 200),
    (1, 2, 3.5, T0 + 200),
    (1, 4, 0.5, T0 + 300),
    (2, 1, 2.0, T0 + 3 * DAY),
    (2, 5, 4.5, T0 + 3 * DAY + 60),
    (3, 6, 4.0, T0 - 3_650 * DAY),
]
CONTEXTS = [(1, T0 + 100), (1, T0 + 200), (1, T0 + 201), (1, T0 + 300), (2, T0 + 3 * DAY), (3, T0)]


__all__ = ["postgres_server", "redis_server"]


@pytest.fixture(scope="session", params=["embedded", "redis and postgresql"])
def servers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a `FeatureStoreConfig` says about the online store and the registry; nothing where both are embedded."""
    if request.param == "embedded":
        return {}
    address = request.getfixturevalue("redis_server").connection
    registry = request.getfixturevalue("postgres_server").database()
    return {"online_store": "redis", "redis_connection": address, "registry_path": registry}


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = build(tmp_path_factory.mktemp("planted"), PLANTED, CONTEXTS)
    yield world
    world.store.close()


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    rows = random_events(0)
    moments = sorted({(u, t + late) for u, _, _, t in rows for late in (0, 1)})
    world = build(tmp_path_factory.mktemp("seeded"), rows, moments, name="seeded")
    yield world
    world.store.close()
