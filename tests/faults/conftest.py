"""A world of its own for tests that break things, and the servers that some of them need."""

from collections.abc import Iterator

import pytest

from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.features.state import Event
from serving.recommending.service import Service
from tests.serving.serving_world import ServingWorld, build
from tests.stores.native import redis_server

__all__ = ["redis_server"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ServingWorld:
    """Of one module: what a fault has left behind does not reach the next."""
    return build(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def closing() -> Iterator[list[Service]]:
    """Services that a test makes; closed afterwards."""
    services: list[Service] = []
    yield services
    for service in services:
        service.close()


def own_events(world: ServingWorld, user_id: int) -> list[Event]:
    """A user's events in the data set."""
    own = world.events.loc[world.events[USER_ID] == user_id, [ITEM_ID, RATING, TIMESTAMP]]
    return [Event(int(i), float(r), int(t)) for i, r, t in own.itertuples(index=False)]
