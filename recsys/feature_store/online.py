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
import pandas as pd

from recsys.columns import CREATED_TIMESTAMP, EVENT_TIMESTAMP, USER_ID, USER_SEEN_VIEW, USER_STATE_VIEW
from recsys.feature_store.tables import SEEN_COLUMN, columns_of_state, states_from_columns
from recsys.features.state import UserState

Stored = tuple[UserState, npt.NDArray[np.int64]]


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


def write_state(feast_store: Any, state: UserState, seen_ids: Sequence[int], stamped: int) -> None:
    """Write both rows of one user, online only: an offline push would rewrite the whole Parquet file in place.

    Seen movies first. A failure in between leaves a movie hidden, not one shown again.
    """
    moment = datetime.fromtimestamp(stamped, UTC)
    keys = {USER_ID: state.user_id, EVENT_TIMESTAMP: moment, CREATED_TIMESTAMP: moment}
    for view, features in (
        (USER_SEEN_VIEW, {SEEN_COLUMN: seen_ids}),
        (USER_STATE_VIEW, columns_of_state(state)),
    ):
        row = {name: [value] for name, value in {**keys, **features}.items()}
        feast_store.write_to_online_store(view, df=pd.DataFrame(row))
