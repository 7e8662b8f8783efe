"""What Feast knows: two entities, two views, and one feature service for each of the two request stages.

`recsys.feature_store` registers these objects, and both tracks ask for a service by its name. Features of user and item
together are computed in both tracks by `recsys.features.candidate`; on-demand views would cost 14 to 76 ms for the
candidates of one request.

Feast imports every `.py` below this folder, so this stays the only one. Nobody imports it from Python. The DuckDB store
takes paths as they stand, so that the folder of one data set's tables comes from outside: `recsys` hands it in as
FEATURES_FOLDER, and the `feast` command finds it in the environment as RECSYS_FEATURES.
"""

import os
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Float64, Int64, String

from recsys.columns import (
    AGE,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    GENDER,
    ITEM_ID,
    ITEM_STATS_VIEW,
    OCCUPATION,
    RANKING_SERVICE,
    RETRIEVAL_SERVICE,
    USER_ID,
    USER_STATE_VIEW,
)

FEATURES = Path(globals().get("FEATURES_FOLDER") or os.environ["RECSYS_FEATURES"])

# A state never expires. Who rated three films ten years ago and comes back today still liked them; a limit would turn
# that user cold without a word, and Feast would enforce it offline only: a difference between training and serving.
NEVER = timedelta(0)


def parquet(name: str) -> FileSource:
    return FileSource(
        name=name,
        path=str(FEATURES / f"{name}.parquet"),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED_TIMESTAMP,
    )


user = Entity(name="user", join_keys=[USER_ID], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=[ITEM_ID], value_type=ValueType.INT64)

# A row stamped s holds the user's events with timestamp <= s: predict at t from rows stamped before t.
user_state = FeatureView(
    name=USER_STATE_VIEW,
    entities=[user],
    ttl=NEVER,
    source=parquet(USER_STATE_VIEW),
    schema=[
        Field(name=USER_ID, dtype=Int64),
        Field(name="history_item_ids", dtype=Array(Int64)),
        Field(name="history_ratings", dtype=Array(Float32)),
        Field(name="history_timestamps", dtype=Array(Int64)),
        Field(name="n_events", dtype=Int64),
        Field(name="n_liked", dtype=Int64),
        Field(name="rating_sum", dtype=Float64),
        Field(name="rating_square_sum", dtype=Float64),
        Field(name=GENDER, dtype=String),
        Field(name=AGE, dtype=Int64),
        Field(name=OCCUPATION, dtype=String),
        # The newest row of a user alone tells these: the rest of the history, and how far it knows the event table.
        Field(name="older_item_ids", dtype=Array(Int64)),
        Field(name="older_ratings", dtype=Array(Float32)),
        Field(name="older_timestamps", dtype=Array(Int64)),
        Field(name="through_seq", dtype=Int64),
    ],
)

# A row stamped D 00:00 UTC holds the ratings before D; a prediction on day D may read it. Read offline alone: the
# service holds the statistics of all items in memory, and 500 of them cost 54 ms a request online.
item_stats = FeatureView(
    name=ITEM_STATS_VIEW,
    entities=[item],
    ttl=NEVER,
    online=False,
    source=parquet(ITEM_STATS_VIEW),
    schema=[
        Field(name=ITEM_ID, dtype=Int64),
        Field(name="snapshot_day", dtype=Int64),
        Field(name="n_ratings", dtype=Int64),
        Field(name="n_liked", dtype=Int64),
        Field(name="rating_sum", dtype=Float64),
        Field(name="decayed_7d", dtype=Float64),
        Field(name="decayed_30d", dtype=Float64),
        Field(name="decayed_365d", dtype=Float64),
        Field(name="first_rated", dtype=Int64),
        Field(name="last_rated", dtype=Int64),
    ],
)

retrieval = FeatureService(name=RETRIEVAL_SERVICE, features=[user_state])
ranking = FeatureService(name=RANKING_SERVICE, features=[item_stats])
