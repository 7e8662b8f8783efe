"""The one vocabulary: column names, event types, and the names that Feast and MLflow know us by.

A raw id is `*_id`, a dense row number is `*_idx`; only `recsys.features.catalogue.Catalogue` maps between the two.
"""

from typing import Final

# Events, items and users, as `recsys.data.tables` writes them.
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
RATING: Final = "rating"  # stars, 0.5 to 5.0
TIMESTAMP: Final = "timestamp"  # whole seconds since 1970-01-01 UTC, int64

TITLE: Final = "title"  # as in the retriever, with the year in parentheses
YEAR: Final = "year"  # year of release, null where the title has none
GENRES: Final = "genres"  # list of strings, empty where the retriever names none

GENDER: Final = "gender"  # "F", "M" or null
AGE: Final = "age"  # years, or null (ml-1m gives the lower end of a bracket)
OCCUPATION: Final = "occupation"  # lower-case label or null

# Feature tables.
EVENT_TIMESTAMP: Final = "event_timestamp"  # Feast's name; UTC, microseconds
CREATED_TIMESTAMP: Final = "created"

# Recommendations.
RANK: Final = "rank"  # 1 is best
SCORE: Final = "score"
RANKED: Final = "ranked"  # list of item_id, best first (evaluation dump)

LIKED_RATING: Final = 4.0  # a rating of at least this is a `liked` event

# Names in the Feast registry. Both tracks ask for a FeatureService by name; nobody imports the definitions.
USER_STATE_VIEW: Final = "user_state"
ITEM_STATS_VIEW: Final = "item_stats"
RETRIEVAL_SERVICE: Final = "retrieval"  # user_state: the one row that a request reads
RANKING_SERVICE: Final = "ranking"  # item_stats: what ranking needs beyond the user's row

# Names of the retrieval retrievers, in the order in which they appear in features and tables.
TWO_TOWER: Final = "two_tower"
EASE: Final = "ease"
ITEM_KNN: Final = "item_knn"
IALS: Final = "ials"
COVISITATION: Final = "covisitation"
POPULARITY: Final = "popularity"
RETRIEVERS: Final = (TWO_TOWER, EASE, IALS, ITEM_KNN, COVISITATION, POPULARITY)

# Aliases in the model registry.
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
