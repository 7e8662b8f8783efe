"""The state that a request reads, and the write that makes the next request see an event.

Stage: serving. In: Feast's store, user ids; a state that moved. Out: `UserState` and the items seen. Absent: items
(500 of them cost 54 ms a request online; the service holds `ItemStats` in memory) and the order of writes, which
belongs to the caller: the last write wins.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from recsys.arrays import IntArray
from recsys.columns import USER_SEEN_VIEW, USER_STATE_VIEW
from recsys.feature_store.tables import SEEN_COLUMN, columns_of_state, states_from_columns
from recsys.features.state import UserState

Stored = tuple[UserState, IntArray]
READ_BUSY_MS = 20  # where a file is locked against readers too, which is rare, they give up soon
Row = tuple[UserState, Sequence[int], int]  # state, seen items, seconds UTC to stamp them with


class UserRows:
    """The two views of users in one opened Feast store. Safe to share between threads as far as the store itself is.

    Rows go to the online store and come from it in its own form, protos. `get_online_features` and
    `write_to_online_store` look every name up in the registry and build tables on the way, which takes four times as
    long as the store for a read, and six milliseconds for the write of one user.
    """

    def __init__(self, feast_store: Any, provider: Any = None) -> None:
        """`provider`: in place of the store's own. Raises Feast's FeatureViewNotFoundException where the registry does
        not know the views."""
        self._config, self._provider = feast_store.config, provider or feast_store._get_provider()
        self._views = {name: feast_store.get_feature_view(name) for name in (USER_STATE_VIEW, USER_SEEN_VIEW)}

    def read(self, user_ids: Sequence[int]) -> list[Stored | None]:
        """State and seen items of each user, None for somebody unknown. One read of each view."""
        from feast.type_map import feast_value_type_to_python_type

        columns: dict[str, list[Any]] = {}
        for view in self._views.values():
            names = [field.name for field in view.features]
            rows = self._provider.online_read(self._config, view, _keys(view, user_ids), names)
            for name in names:
                values = [None if row is None else row.get(name) for _, row in rows]
                columns[name] = [None if v is None else feast_value_type_to_python_type(v) for v in values]
        states = states_from_columns([int(user_id) for user_id in user_ids], columns)
        return [
            None if known is None else (state, np.asarray(seen if seen is not None else (), dtype=np.int64))
            for state, known, seen in zip(states, columns["n_events"], columns[SEEN_COLUMN], strict=True)
        ]

    def write(self, rows: Sequence[Row]) -> None:
        """Write both rows of each user, online only: an offline push would rewrite the whole Parquet file in place. A
        user comes at most once. Seen items first: a failure in between leaves an item hidden, not one shown again."""
        if not rows:
            return
        states = [columns_of_state(state) for state, _, _ in rows]
        seen = [{SEEN_COLUMN: list(seen)} for _, seen, _ in rows]
        user_ids, stamps = [state.user_id for state, _, _ in rows], [at for _, _, at in rows]
        for name, columns in ((USER_SEEN_VIEW, seen), (USER_STATE_VIEW, states)):
            self._write(self._views[name], user_ids, stamps, columns)

    def close(self) -> None:
        """Close SQLite's connection; the next call opens it again."""
        close_connection(self._provider)

    def _write(self, view: Any, user_ids: list[int], stamps: list[int], rows: list[dict[str, Any]]) -> None:
        from feast.type_map import python_values_to_proto_values

        names = [field.name for field in view.features]
        columns = [
            python_values_to_proto_values([row[field.name] for row in rows], field.dtype.to_value_type())
            for field in view.features
        ]
        moments = [datetime.fromtimestamp(at, UTC) for at in stamps]
        data = [
            (key, dict(zip(names, values, strict=True)), at, at)
            for key, at, *values in zip(_keys(view, user_ids), moments, *columns, strict=True)
        ]
        self._provider.online_write_batch(self._config, view, data, progress=None)


def commit_without_waiting(feast_store: Any) -> None:
    """For SQLite: a commit no longer waits until the disk has it, which a push does twice and others would wait for.

    A process that dies loses nothing by it. A machine that does may lose the last pushes, never the file's order; every
    event is in the log by then, and `FeatureStore.catch_up` pushes it again when a service starts.
    """
    connection = feast_store._get_provider().online_store._get_conn(feast_store.config)
    connection.execute("PRAGMA synchronous=NORMAL")  # with journal_mode=WAL, which materialisation has set


def close_connection(provider: Any) -> None:
    """SQLite's, where there is one; Feast's own `close` does not."""
    online = provider.online_store
    if getattr(online, "_conn", None) is not None:
        online._conn.close()
        online._conn = None


def with_own_connection(feast_store: Any) -> UserRows:
    """For SQLite: rows that are read over a connection of their own, which only reads.

    Over a write-ahead log a reader waits for no writer, be it a push that waits for another process's transaction, or a
    checkpoint that waits for the disk; over the connection that writes it would.
    """
    from feast.infra.provider import get_provider

    provider = get_provider(feast_store.config)
    connection = provider.online_store._get_conn(feast_store.config)
    connection.execute("PRAGMA query_only=ON")
    rows = UserRows(feast_store, provider)
    rows.read([0])  # the first reader after a crash may have to wait until another one has put the file right
    connection.execute(f"PRAGMA busy_timeout={READ_BUSY_MS}")
    return rows


def stamped_row(row: Stored) -> Row:
    """What `UserRows.write` takes, stamped by the state's last event; 0 without any."""
    state, seen = row
    return state, seen.tolist(), state.timestamps[-1] if state.timestamps else 0


def _keys(view: Any, user_ids: Sequence[int]) -> list[Any]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    (entity,) = view.entity_columns
    return [EntityKey(join_keys=[entity.name], entity_values=[Value(int64_val=int(user_id))]) for user_id in user_ids]
