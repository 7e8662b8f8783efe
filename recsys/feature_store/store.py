"""The feature store as the rest of the system sees it.

Feast's types stay inside this package, and Feast is imported with the first read or write: that takes seven seconds.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.arrays import IntArray
from recsys.columns import ITEM_ID, ITEM_STATS_VIEW, RANKING_SERVICE, RETRIEVAL_SERVICE, USER_ID, USER_STATE_VIEW
from recsys.errors import RecsysError, StoreError
from recsys.feature_store.config import FeatureStoreConfig
from recsys.feature_store.offline import past_rows
from recsys.feature_store.registry import close_feast, fill_online_store, open_feast
from recsys.feature_store.tables import PAST_STATE_COLUMNS, STATE_COLUMNS, THROUGH_SEQ, states_from_columns, table_path
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import SECONDS_PER_DAY, STATS_COLUMNS, ItemStats
from recsys.features.state import UserState

MICROSECONDS = 1_000_000
REMAKE = "Run `recsys train --only features --force`."
ONLINE_CHUNK = 1_000  # users of one read


class FeatureStore:
    """One data set's features, safe to share between threads. Every failure is a StoreError that says what to do."""

    def __init__(self, config: FeatureStoreConfig) -> None:
        self.config = config
        self._feast_store: Any = None
        self._retrieval: Any = None  # the feature service
        self._opening = threading.Lock()

    def apply(self) -> None:
        """Register the definitions. Needs the Parquet tables. Repeating it is free."""
        self._need_tables()
        with self._failing("The definitions could not be registered", "See feature_repo/definitions.py."):
            close_feast(open_feast(self.config, create=True))
        self.close()

    def materialize(self) -> None:
        """Make the online store hold the newest row of every user. A service may read it meanwhile."""
        self._need_tables()
        with self._failing("The online store could not be filled", REMAKE):
            fill_online_store(self.config)

    def historical_states(self, user_ids: npt.ArrayLike, nows: npt.ArrayLike) -> list[UserState]:
        """The state of each user just before each moment (seconds UTC): events with timestamp < now, strictly.

        Exact where `write_feature_tables` was given (user, now) as a context; elsewhere the newest row before. Cold,
        without profile, where every row lies later. What is older than the window is left out.
        """
        ids = np.asarray(user_ids, dtype=np.int64)
        moments = np.broadcast_to(np.asarray(nows, dtype=np.int64), ids.shape)
        before = moments * MICROSECONDS - 1  # Feast takes rows stamped at the moment, which hold what happened then
        table = self._past(RETRIEVAL_SERVICE, USER_STATE_VIEW, USER_ID, ids, before, PAST_STATE_COLUMNS)
        columns = table.to_pandas(integer_object_nulls=True)  # no integer becomes a float
        return states_from_columns(ids.tolist(), {name: columns[name].tolist() for name in PAST_STATE_COLUMNS})

    def historical_item_stats(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """The last snapshot of each item that a prediction on each day may read; `pairs` has item_id and day.

        Row i answers row i: item_id, day and STATS_COLUMNS as float64, NaN for an item not yet rated by then. A
        snapshot stamped at the start of the day itself counts: it holds what happened before it.
        """
        items, days = pairs[ITEM_ID].to_numpy(np.int64), pairs["day"].to_numpy(np.int64)
        start = days * SECONDS_PER_DAY * MICROSECONDS
        table = self._past(RANKING_SERVICE, ITEM_STATS_VIEW, ITEM_ID, items, start, STATS_COLUMNS)
        stats = {name: table[name].cast(pa.float64()).to_numpy() for name in STATS_COLUMNS}
        return pd.DataFrame({ITEM_ID: items, "day": days, **stats})

    def _past(
        self, service: str, view: str, key: str, keys: IntArray, moments_us: IntArray, columns: Sequence[str]
    ) -> Any:
        self._need_tables()
        source = table_path(self.config.home, view)
        with self._failing("Past features could not be read", REMAKE):
            return past_rows(self._opened(), service, source, key, keys, moments_us, columns)

    def item_stats_as_of(self, catalogue: Catalogue, day: int) -> ItemStats:
        """Statistics of all items for a prediction on `day`: one offline read, ten times cheaper than online."""
        self._need_tables()
        written = pq.read_schema(table_path(self.config.home, ITEM_STATS_VIEW)).metadata or {}
        if THROUGH_SEQ.encode() not in written:
            raise StoreError(f"The item statistics do not say which events they hold. {REMAKE}")
        rows = self.historical_item_stats(pd.DataFrame({ITEM_ID: catalogue.item_ids, "day": day}))
        return replace(ItemStats.from_rows(catalogue, rows, day), through_seq=int(written[THROUGH_SEQ.encode()]))

    def last_snapshot_day(self) -> int:
        """The day from which on the item statistics change no more; 0 for an empty table."""
        self._need_tables()
        days = pq.read_table(table_path(self.config.home, ITEM_STATS_VIEW), columns=["snapshot_day"])["snapshot_day"]
        return int(pc.max(days).as_py() or 0)

    def online_state(self, user_id: int) -> UserState | None:
        """The newest state of one user as the last materialisation left it; None for somebody unknown then.

        It knows the events of the table up to its `through_seq`; whoever wants the present state folds later ones.
        """
        return self.online_states([user_id])[0]

    def online_states(self, user_ids: Sequence[int]) -> list[UserState | None]:
        """The same for many users, in the order given."""
        out: list[UserState | None] = []
        with self._failing("User states could not be read", REMAKE + " Or check the online store."):
            feast_store = self._opened()
            for low in range(0, len(user_ids), ONLINE_CHUNK):
                part = [int(user_id) for user_id in user_ids[low : low + ONLINE_CHUNK]]
                columns = feast_store.get_online_features(
                    features=self._retrieval, entity_rows=[{USER_ID: user_id} for user_id in part]
                ).to_dict()
                known = [count is not None for count in columns["n_events"]]
                states = states_from_columns(part, {name: columns[name] for name in STATE_COLUMNS})
                out += [state if there else None for state, there in zip(states, known, strict=True)]
        return out

    def close(self) -> None:
        """Close connections; the next call opens them again, with the data set that the home holds then."""
        with self._opening:
            if self._feast_store is not None:
                close_feast(self._feast_store)
            self._feast_store = self._retrieval = None

    def _opened(self) -> Any:
        with self._opening:
            if self._feast_store is None:
                feast_store = open_feast(self.config)
                self._retrieval = feast_store.get_feature_service(RETRIEVAL_SERVICE)
                self._feast_store = feast_store
            return self._feast_store

    def _need_tables(self) -> None:
        for view in (USER_STATE_VIEW, ITEM_STATS_VIEW):
            path = table_path(self.config.home, view)
            if not path.exists():
                raise StoreError(f"No feature table at {path}. Run `recsys train` first.")

    @contextlib.contextmanager
    def _failing(self, what: str, advice: str) -> Iterator[None]:
        """Turn whatever Feast, ibis, SQLAlchemy, SQLite or Redis raise (they share no base class) into StoreError."""
        try:
            yield
        except RecsysError:
            raise
        except Exception as error:
            raise StoreError(
                f"{what} for {self.config.home.name}: {type(error).__name__}: {error}. {advice}"
            ) from error
