"""A home that was served from, built once a module; every test starts from it anew."""

from collections.abc import Iterator

import pytest

from tests.pipelines.monitoring.monitored_world import Monitored, forgetting, monitored


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Monitored:
    return monitored(tmp_path_factory.mktemp("home"))


@pytest.fixture
def world(built: Monitored) -> Iterator[Monitored]:
    with forgetting(built) as fresh:
        yield fresh
