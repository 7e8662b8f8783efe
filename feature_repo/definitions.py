"""What Feast knows: two entities, three views, and one feature service for each of the two request stages.

Stage: features; registered by `FeatureStore.apply` or `feast apply`. In: RECSYS_FEATURES, the absolute path of one
data set's `features` folder. Out: the objects in the registry; both tracks ask for a service by its name. Absent:
any feature of user and candidate together (`recsys.features.candidate` computes those in both tracks), and any
on-demand view: they cost 14 to 76 ms for the candidates of one request.

Feast imports every `.py` below this folder, so this stays the only one. Nobody imports it from Python. The folder
comes from the environment because the DuckDB store takes paths as they stand: a relative one would depend on the
working directory, and an absolute one here would tie the repository to one machine and one data set.
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
    USER_SEEN_VIEW,
    USER_STATE_VIEW,
)

if "RECSYS_FEATURES" not in os.environ:
    raise RuntimeError("Set RECSYS_FEATURES to the `features` folder of one data set; see feature_store.yaml.")
FEATURES = Path(os.environ["RECSYS_FEATURES"])

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
    ],
)

# Every item of the whole history, for the filter of a request. Only the newest row of a user is kept: the past ones
# would grow with the square of a history, and offline the events table answers the same question.
user_seen = FeatureView(
    name=USER_SEEN_VIEW,
    entities=[user],
    ttl=NEVER,
    source=parquet(USER_SEEN_VIEW),
    schema=[Field(name=USER_ID, dtype=Int64), Field(name="seen_item_ids", dtype=Array(Int64))],
)

# A row stamped D 00:00 UTC holds the ratings before D; a prediction on day D may read it.
item_stats = FeatureView(
    name=ITEM_STATS_VIEW,
    entities=[item],
    ttl=NEVER,
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

retrieval = FeatureService(name=RETRIEVAL_SERVICE, features=[user_state, user_seen])
ranking = FeatureService(name=RANKING_SERVICE, features=[item_stats])
