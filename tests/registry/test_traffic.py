"""The traffic: what was set is what is read, and what no service could follow is refused."""

import pytest

from recsys.errors import ConfigError, RegistryError
from recsys.experiments.assignment import Arm, Experiment
from recsys.registry import Registry, Traffic

from .conftest import Make


def canary(version: int | None, **settings: float) -> Experiment:
    return Experiment(f"canary-{version}", (Arm("champion", 0.9), Arm("canary", 0.1, version, dict(settings))))


def test_the_traffic_is_kept_with_the_model(registry: Registry, make: Make) -> None:
    assert registry.traffic() == Traffic()
    first, second = (registry.register(make(name)).version for name in ("b1", "b2"))
    registry.promote(first)
    traffic = Traffic(shadow=second, experiment=canary(second, diversity=0.3))
    registry.set_traffic(traffic)
    assert registry.traffic() == traffic
    with pytest.raises(RegistryError, match="no version 9"):
        registry.set_traffic(Traffic(shadow=9))
    assert registry.traffic() == traffic
    registry.set_traffic(Traffic())
    assert registry.traffic() == Traffic()
    with registry._backend.writing("break the tag") as client:
        client.set_registered_model_tag(registry.model_name, "recsys.traffic", '{"shadow": 1}')
    with pytest.raises(RegistryError, match=r"cannot be read.*Set it again"):
        registry.traffic()


def test_more_versions_than_fit_and_settings_that_do_not_exist_are_refused() -> None:
    three = Experiment("three", (Arm("a", 0.5, 2), Arm("b", 0.5, 3)))
    assert Traffic(shadow=3, experiment=three).versions == (2, 3)
    with pytest.raises(ConfigError, match="names the versions 2, 3, 4; 2 fit beside the champion"):
        Traffic(shadow=4, experiment=three)
    for settings in ({"fusion": 0.5}, {"exploration": 1.5}):
        with pytest.raises(ConfigError, match="diversity and exploration may be set, from 0 to 1"):
            Traffic(experiment=canary(2, **settings))
