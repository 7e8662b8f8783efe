"""The state that a request reads, and the write that makes the next request see an event.

Stage: serving. In: Feast's store, user ids; a state that moved. Out: `UserState` and the movies seen. Absent: movies
(500 of them cost 54 ms a request online; the service holds `ItemStats` in memory) and the order of writes, which
belongs to the caller: the last write wins.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.columns import USER_ID, USER_SEEN_VIEW, USER_STATE_VIEW
from recsys.feature_store.tables import SEEN_COLUMN, STATE_COLUMNS, columns_of_state, states_from_columns
from recsys.features.state import UserState

Stored = tuple[UserState, npt.NDArray[np.int64]]
Row = tuple[UserState, Sequence[int], int]  # state, seen movies, seconds UTC to stamp them with


def read_states(feast_store: Any, service: Any, user_ids: Sequence[int]) -> list[Stored | None]:
    """State and seen movies of each user, None for somebody unknown; exactly one `get_online_features` call.

    Columns are taken by name: their order in the answer changes from process to process.
    """
    answer = feast_store.get_online_features(
        features=service, entity_rows=[{USER_ID: int(user_id)} for user_id in user_ids]
    ).to_dict()
    states = states_from_columns([int(user_id) for user_id in user_ids], answer)
    return [
        None if known is None else (state, np.asarray(seen if seen is not None else (), dtype=np.int64))
        for state, known, seen in zip(states, answer["n_events"], answer[SEEN_COLUMN], strict=True)
    ]


def stamped_row(row: Stored) -> Row:
    """What `write_states` takes, stamped by the state's last event; 0 without any."""
    state, seen = row
    return state, seen.tolist(), state.timestamps[-1] if state.timestamps else 0


def write_states(feast_store: Any, rows: Sequence[Row]) -> None:
    """Write both rows of each user, online only: an offline push would rewrite the whole
    Parquet file in place. A user comes at most once.

    Seen movies first. A failure in between leaves a movie hidden, not one shown again. The rows go to the online store
    in its own form: `write_to_online_store` would make a data frame and an Arrow table of each first, six milliseconds
    for one user.
    """
    if not rows:
        return
    states = [columns_of_state(state) for state, _, _ in rows]
    for view, features in (
        (USER_SEEN_VIEW, {SEEN_COLUMN: [list(seen) for _, seen, _ in rows]}),
        (USER_STATE_VIEW, {name: [state[name] for state in states] for name in STATE_COLUMNS}),
    ):
        _write(feast_store, view, [state.user_id for state, _, _ in rows], [at for _, _, at in rows], features)


def _write(
    feast_store: Any, view: str, user_ids: list[int], stamped: list[int], features: dict[str, list[Any]]
) -> None:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values

    feature_view = feast_store.get_feature_view(view, allow_registry_cache=True)
    (entity,) = feature_view.entity_columns
    keys = python_values_to_proto_values(user_ids, entity.dtype.to_value_type())
    columns = {
        field.name: python_values_to_proto_values(features[field.name], field.dtype.to_value_type())
        for field in feature_view.features
    }
    moments = [datetime.fromtimestamp(at, UTC) for at in stamped]
    data = [
        (EntityKey(join_keys=[entity.name], entity_values=[key]), dict(zip(columns, values, strict=True)), at, at)
        for key, *values, at in zip(keys, *columns.values(), moments, strict=True)
    ]
    feast_store._get_provider().online_write_batch(feast_store.config, feature_view, data, progress=None)
