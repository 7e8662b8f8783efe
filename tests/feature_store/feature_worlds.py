"""Small worlds for the feature store's tests: planted or seeded events, and a store over them in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.feature_store import FeatureStore, FeatureStoreConfig, write_feature_tables
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.features.item_stats import snapshots
from recsys.features.state import UserState
from recsys.workspace import DatasetWorkspace
from tests.planted import folded

REPO = Path(__file__).parents[2] / "feature_repo"
DAY = 86_400
T0 = 11_000 * DAY  # midnight UTC

EventRow = tuple[int, int, float, int]  # user, item, stars, seconds


@dataclass(frozen=True)
class World:
    """`end`: one second after the last event."""

    events: pd.DataFrame
    users: pd.DataFrame
    catalogue: Catalogue
    histories: Histories
    snapshots: pd.DataFrame
    home: DatasetWorkspace
    store: FeatureStore

    @property
    def end(self) -> int:
        return int(self.events[TIMESTAMP].max()) + 1


def build(
    folder: Path,
    rows: Sequence[EventRow],
    contexts: Sequence[tuple[int, int]] = (),
    name: str = "planted",
    servers: Mapping[str, Any] | None = None,
    through_seq: int = 0,
) -> World:
    """Write the tables, register, materialise. Users 1 to 9 exist, 8 and 9 with unknown profile; items 1 to 100.

    `servers`: what `FeatureStoreConfig` must know of them; None is embedded."""
    events = pd.DataFrame(rows, columns=[USER_ID, ITEM_ID, RATING, TIMESTAMP]).astype({RATING: np.float32})
    users = pd.DataFrame(
        {
            USER_ID: np.arange(1, 10),
            GENDER: [*["F", "M"] * 3, "F", None, None],
            AGE: pd.array([18, 25, 35, 45, 50, 56, 25, None, None], dtype="Int32"),
            OCCUPATION: [*["artist", "doctor"] * 3, "artist", None, None],
        }
    )
    items = pd.DataFrame(
        {
            ITEM_ID: np.arange(1, 101),
            TITLE: [f"Film {i} (1999)" for i in range(1, 101)],
            YEAR: pd.array([1999] * 100, dtype="Int32"),
            GENRES: [["Drama"]] * 100,
        }
    )
    catalogue = Catalogue.from_tables(items, users)
    histories = Histories.from_tables(catalogue, events, users)
    home = DatasetWorkspace(folder / name, name)
    table = snapshots(events)
    moments = pd.DataFrame(list(contexts), columns=[USER_ID, TIMESTAMP], dtype=int)
    write_feature_tables(home, histories, table, moments, through_seq)
    store = FeatureStore(FeatureStoreConfig(home, REPO, **(servers or {})))
    store.apply()
    store.materialize()
    return World(events, users, catalogue, histories, table, home, store)


def newest(world: World, user_id: int) -> UserState:
    """As the fold of all events would have it."""
    return folded(world.histories, user_id)


def random_events(seed: int, size: int = 300, users: int = 7) -> list[EventRow]:
    """Events of users 1 to `users` in bursts: many share a second, and items are rated again."""
    rng = np.random.default_rng(seed)
    weight = np.array([0.5, *[0.5 / (users - 1)] * (users - 1)])
    return [
        (int(u), int(i), float(r), int(t))
        for u, i, r, t in zip(
            rng.choice(np.arange(1, users + 1), size, p=weight),
            rng.integers(1, 101, size),
            rng.integers(1, 11, size) / 2,
            T0 + rng.integers(0, 40, size) * 7_001,
            strict=True,
        )
    ]
