"""A small synthetic data set, what is true of it, and a world in which its people live on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys.arrays import IntArray
from recsys.data.synthetic import WorldSize, generate_world
from recsys.simulation.sessions import Visits
from recsys.simulation.truth import Truth, from_synthetic
from recsys.simulation.world import LivingWorld, WorldSettings, first_day_s

SIZE = WorldSize(n_users=200, n_items=300, n_events=12_000)
SETTINGS = WorldSettings(n_people=160, days=20, trend_day=None)  # 112 known and 48 new

MakeWorld = Callable[..., LivingWorld]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("living") / "world"
    generate_world(place, SIZE, seed=3)
    return place


@pytest.fixture(scope="session")
def history(folder: Path) -> pd.DataFrame:
    lines = (folder / "ratings.dat").read_text(encoding="latin-1").splitlines()
    names = ["user_id", "item_id", "rating", "timestamp"]
    return pd.DataFrame([[int(field) for field in line.split("::")] for line in lines], columns=names)


@pytest.fixture(scope="session")
def truth(folder: Path) -> Truth:
    return from_synthetic(folder, n_new=60)


@pytest.fixture
def make(truth: Truth, history: pd.DataFrame) -> MakeWorld:
    def make_world(settings: WorldSettings = SETTINGS, seed: int = 1, truth: Truth = truth) -> LivingWorld:
        return LivingWorld(truth, history, settings, first_day_s(history), seed)

    return make_world


def random_lists(world: LivingWorld, visits: Visits, k: int = 10) -> IntArray:
    """(B, k) of the whole catalogue, seen and unreleased items too."""
    order = np.random.default_rng(0).random((len(visits), len(world.truth.item_ids))).argsort(axis=1)
    return world.truth.item_ids[order[:, :k]]


def live_through(world: LivingWorld, days: int, choose: Callable[[LivingWorld, Visits], IntArray]) -> pd.DataFrame:
    tables = []
    for day in range(days):
        visits = world.visits(day)
        outcomes = world.look(visits, choose(world, visits))
        world.record(visits, outcomes)
        tables.append(pd.DataFrame(vars(outcomes)))
    return pd.concat(tables)
