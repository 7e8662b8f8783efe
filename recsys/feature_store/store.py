"""The feature store as the rest of the system sees it.

Stage: features, training and serving. In: a `FeatureStoreConfig`. Out: states and item statistics as of past moments
(offline), the state of a user now (online). Absent: what is done with them; Feast's types, which stay inside this
package; and Feast itself until the first read or write, because importing it takes seven seconds.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.arrays import DoubleArray, IntArray
from recsys.atomic_io import read_json, write_json
from recsys.columns import ITEM_ID, ITEM_STATS_VIEW, RANKING_SERVICE, RETRIEVAL_SERVICE, USER_ID, USER_STATE_VIEW
from recsys.errors import RecsysError, StoreError
from recsys.event_log import BEGINNING, Position, read_log
from recsys.feature_store.as_of import newest_rows
from recsys.feature_store.catch_up import catch_up
from recsys.feature_store.config import FeatureStoreConfig
from recsys.feature_store.importing import import_feast
from recsys.feature_store.latest import history_position, whole_state
from recsys.feature_store.materialization import VIEWS, dispose, materialize_all
from recsys.feature_store.offline import point_in_time
from recsys.feature_store.online import Row, Stored, UserRows, commit_without_waiting, stamped_row, with_own_connection
from recsys.feature_store.registration import register
from recsys.feature_store.registry_file import set_aside_if_damaged
from recsys.feature_store.tables import STATE_COLUMNS, states_from_columns, table_path
from recsys.feature_store.user_locks import UserLocks
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import SECONDS_PER_DAY, STATS_COLUMNS, ItemStats
from recsys.features.state import UserState

MICROSECONDS = 1_000_000
STATE_PAIRS = 200_000  # a pair carries a history of up to L events, about 1.3 kB
STATS_PAIRS = 5_000_000
STATS_BY_FEAST = 10_000  # pairs of item and day; beyond it Feast's join is checked, not waited for
ONLINE_CHUNK = 256  # users a bulk read or write; keeps the lock for a few tens of ms


class FeatureStore:
    """One data set's features. Safe to share between threads; two stores of two homes never see one another.

    Every failure is a StoreError that names the next step.
    """

    def __init__(self, config: FeatureStoreConfig) -> None:
        self.config = config
        self.locks = UserLocks(config.home.feast / "locks")
        self._feast_store: Any = None
        self._users: UserRows | None = None
        self._opening = threading.RLock()
        self._single: UserRows | None = None  # for reads at once
        self._singly = threading.Lock()
        # Feast reads and writes SQLite over one connection, which sees its own unfinished transaction: without a lock
        # a read during a push could return new items with old ratings. Redis has a connection a call.
        self._online: contextlib.AbstractContextManager[Any] = (
            threading.RLock() if config.online_store == "sqlite" else contextlib.nullcontext()
        )

    def apply(self) -> bool:
        """Register the definitions; True where anything changed. Needs the Parquet tables. Repeating it is free."""
        self._need_tables()
        with self._failing("The definitions could not be registered", "See feature_repo/definitions.py."):
            self.config.home.feast.mkdir(parents=True, exist_ok=True)
            if self.config.registry_file is not None:
                set_aside_if_damaged(self.config.registry_file)
            feast_store = self._open()
            changed = register(feast_store, self.config)
            feast_store.refresh_registry()
            self._forget_rows()
            return changed

    def materialize(self) -> None:
        """Make the online store hold the newest row of every user and item, with the event log's later events on top.

        Nothing else is left of older runs and pushes. A service may run meanwhile: where the tables' row replaces a
        newer state that it pushed, this puts the state right before it returns, because the event is in the log.
        """
        self._need_tables()
        home = self.config.home
        position = history_position(home)
        with self._failing("The online store could not be filled", "Run `recsys train --only features --force`."):
            feast_store = self._registered()

            def later_events(fresh: Any) -> None:
                catch_up(_Beside(self, UserRows(fresh)), None, read_log(home.events, after=position))

            materialize_all(feast_store, self.config, later_events)
            # from here on `catch_up` need not look at what came before, because the online store has it
            write_json(self._caught_up, dict(position))
        self.catch_up()

    @property
    def _caught_up(self) -> Path:
        """Names the position in the log up to which the online store has every event, whatever else failed."""
        return self.config.home.feast / "log_position.json"

    def catch_up(self) -> int:
        """Push every state that the log moves beyond what was materialised. Returns the users moved.

        Repeating it changes nothing. A service does it when it starts, for events whose push had failed.
        """
        after: Position = read_json(self._caught_up) if self._caught_up.exists() else BEGINNING
        return catch_up(self, self.locks, read_log(self.config.home.events, after=after))

    def whole_state(self, profile: UserState) -> Stored:
        """State and seen items of one user from every event there is, table and log; the profile stays as given.

        For a state that `recsys.features.state_merge.fold` cannot move. Milliseconds, and more while the log is long.
        """
        with self._failing("All events of a user could not be read", "Run `recsys train --only features --force`."):
            return whole_state(self.config.home, profile)

    def historical_states(self, user_ids: npt.ArrayLike, nows: npt.ArrayLike) -> list[UserState]:
        """The state of each user just before each moment (seconds UTC): events with timestamp < now, strictly.

        Rows are stamped by their last event and Feast's join takes stamps <= the moment, so it is asked for one
        microsecond earlier. Exact where `write_feature_tables` was given (user, now) as a context; elsewhere the
        newest row before. Cold, without profile, where every row lies later. The seen items are not read: that table
        holds only the newest row.
        """
        self._need_tables()
        ids = np.asarray(user_ids, dtype=np.int64)
        moments = np.broadcast_to(np.asarray(nows, dtype=np.int64), ids.shape)
        with self._failing("Past states could not be read", "Run `recsys train --only features --force`."):
            table = point_in_time(
                self._registered(),
                RETRIEVAL_SERVICE,
                table_path(self.config.home, USER_STATE_VIEW),
                USER_ID,
                ids,
                moments * MICROSECONDS - 1,
                STATE_COLUMNS,
                STATE_PAIRS,
            )
            return states_from_columns(ids.tolist(), {name: _values(table[name]) for name in STATE_COLUMNS})

    def historical_item_stats(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """The last snapshot of each item that a prediction on each day may read; `pairs` has item_id and day.

        Row i answers row i: item_id, day and STATS_COLUMNS as float64, NaN for an item not yet rated by then. A
        snapshot stamped at the start of the day itself counts: it holds what happened before it.

        Up to STATS_BY_FEAST pairs are Feast's join. More are searched for in the same file (`as_of`), and a random
        sample of that size is held against Feast's join, exactly; a difference is a StoreError.
        """
        self._need_tables()
        items, days = pairs[ITEM_ID].to_numpy(np.int64), pairs["day"].to_numpy(np.int64)
        with self._failing("Past item statistics could not be read", "Run `recsys train --only features --force`."):
            if len(items) <= STATS_BY_FEAST:
                stats = self._stats_by_feast(items, days)
            else:
                path = table_path(self.config.home, ITEM_STATS_VIEW)
                moments = days * SECONDS_PER_DAY * MICROSECONDS
                stats = _floats(newest_rows(path, ITEM_ID, items, moments, STATS_COLUMNS))
                sample = np.random.default_rng(len(items)).choice(len(items), STATS_BY_FEAST, replace=False)
                for name, values in self._stats_by_feast(items[sample], days[sample]).items():
                    if not np.array_equal(values, stats[name][sample], equal_nan=True):
                        advice = "Run `recsys train --only features --force`."
                        raise StoreError(f"Feast's past item statistics differ from the table's in {name}. {advice}")
        return pd.DataFrame({ITEM_ID: items, "day": days, **stats})

    def _stats_by_feast(self, items: IntArray, days: IntArray) -> dict[str, DoubleArray]:
        return _floats(
            point_in_time(
                self._registered(),
                RANKING_SERVICE,
                table_path(self.config.home, ITEM_STATS_VIEW),
                ITEM_ID,
                items,
                days * SECONDS_PER_DAY * MICROSECONDS,
                STATS_COLUMNS,
                STATS_PAIRS,
            )
        )

    def item_stats_as_of(self, catalogue: Catalogue, day: int) -> ItemStats:
        """Statistics of all items for a prediction on `day`: one offline read, ten times cheaper than online."""
        rows = self.historical_item_stats(pd.DataFrame({ITEM_ID: catalogue.item_ids, "day": day}))
        return ItemStats.from_rows(catalogue, rows, day)

    def last_snapshot_day(self) -> int:
        """The day from which on the item statistics change no more; 0 for an empty table."""
        self._need_tables()
        days = pq.read_table(table_path(self.config.home, ITEM_STATS_VIEW), columns=["snapshot_day"])["snapshot_day"]
        return int(pc.max(days).as_py() or 0)

    @property
    def local(self) -> bool:
        """Whether the online store is a file of this machine, so that a read waits for no network."""
        return self.config.online_store == "sqlite"

    def online_state(self, user_id: int, *, at_once: bool = False) -> Stored | None:
        """State and seen items (raw ids) of one user now; None for somebody unknown. One read of the store.

        `at_once`: where the store is a file, wait for no push, of this process or another; for whoever holds up others
        as long as this takes.
        """
        if not (at_once and self.local):
            return self.online_states([user_id])[0]
        with self._reading():
            feast_store = self._registered()
            with self._singly:
                if self._single is None:
                    self._single = with_own_connection(feast_store)
                return self._single.read([user_id])[0]

    def online_states(self, user_ids: Sequence[int]) -> list[Stored | None]:
        """The same for many users, in parts, in the order given."""
        out: list[Stored | None] = []
        with self._reading():
            users = self._user_rows()
            for low in range(0, len(user_ids), ONLINE_CHUNK):
                with self._online:
                    out += users.read(user_ids[low : low + ONLINE_CHUNK])
        return out

    def push_state(self, state: UserState, seen_ids: npt.ArrayLike, *, stamped: int) -> None:
        """Make `state` what the next request reads. `stamped`: seconds UTC of its last event. Online only.

        The last write wins, whatever its stamp. Whoever pushes must therefore read, move and push the state of one
        user in one turn, holding `locks`; two turns for one user at once lose an event.
        """
        self._push([(state, np.asarray(seen_ids, dtype=np.int64).tolist(), stamped)])

    def push_states(self, rows: Sequence[Stored]) -> None:
        """The same for many users at once, each stamped by its last event (0 without any); no user twice."""
        for low in range(0, len(rows), ONLINE_CHUNK):
            self._push([stamped_row(row) for row in rows[low : low + ONLINE_CHUNK]])

    def _push(self, rows: Sequence[Row]) -> None:
        with self._failing("User states could not be written", "Check the online store; events are in the log."):
            users = self._user_rows()
            with self._online:
                users.write(rows)

    def close(self) -> None:
        """Close connections; the next call opens them again."""
        with self._opening:
            if self._feast_store is not None:
                dispose(self._feast_store)
            self._forget_rows()
            self._feast_store = None

    def _open(self) -> Any:
        with self._opening:
            if self._feast_store is None:
                feast = import_feast()

                # Feast makes deprecations visible when it is imported; this one is ibis's, about DuckDB, on every read.
                warnings.filterwarnings("ignore", r"fetch_arrow_table\(\) is deprecated", DeprecationWarning)
                self._feast_store = feast.FeatureStore(config=self.config.feast_config())
            return self._feast_store

    def _registered(self) -> Any:
        """Feast's store, once the definitions are known to be in its registry."""
        if self._users is not None:
            return self._feast_store
        registry = self.config.registry_file
        if registry is not None and not registry.exists():
            raise StoreError(f"No feature registry at {registry}. Run `recsys train` first.")
        with self._opening:
            feast_store = self._open()  # before anything else of Feast: see `importing`
            from feast.errors import FeatureViewNotFoundException

            try:
                self._users = UserRows(feast_store)
                if self.config.online_store == "sqlite":
                    commit_without_waiting(feast_store)
            except FeatureViewNotFoundException as error:
                raise StoreError(
                    f"The registry does not know project {self.config.project}: {self.config.home.root} is new, or was "
                    "moved. Run `recsys train --only features --force`."
                ) from error
            return feast_store

    def _user_rows(self) -> UserRows:
        self._registered()
        assert self._users is not None
        return self._users

    def _need_tables(self) -> None:
        for view in VIEWS:
            path = table_path(self.config.home, view)
            if not path.exists():
                raise StoreError(f"No feature table at {path}. Run `recsys train` first.")

    def _forget_rows(self) -> None:
        with self._singly:
            if self._single is not None:
                self._single.close()
            self._users = self._single = None

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        advice = "Run `recsys train --only features --force`, or check the online store."
        return self._failing("User states could not be read", advice)

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


def _floats(table: Any) -> dict[str, DoubleArray]:
    """STATS_COLUMNS by name, NaN for null."""
    return {name: table[name].cast(pa.float64()).to_numpy() for name in STATS_COLUMNS}


def _values(column: Any) -> list[Any]:
    """Python values of an Arrow column, None for null. Lists are cut from one flat list: ten times faster."""
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        values: list[Any] = column.to_pylist()
        return values
    out: list[Any] = []
    for chunk in column.chunks:
        offsets, flat = chunk.offsets.to_numpy().tolist(), chunk.values.to_numpy(zero_copy_only=False).tolist()
        out += [
            flat[low:high] if valid else None
            for low, high, valid in zip(offsets[:-1], offsets[1:], chunk.is_valid().to_pylist(), strict=True)
        ]
    return out


class _Beside:
    """An online store that is being filled and that nobody reads yet; `catch_up` sees it like the other one."""

    def __init__(self, store: FeatureStore, fresh: UserRows) -> None:
        self._fresh = fresh
        self.whole_state = store.whole_state

    def online_states(self, user_ids: Sequence[int]) -> list[Stored | None]:
        return self._fresh.read(user_ids)

    def push_states(self, rows: Sequence[Stored]) -> None:
        self._fresh.write([stamped_row(row) for row in rows])
