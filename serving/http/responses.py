"""What callers get, as the OpenAPI document describes it.

The service makes plain dicts. A test holds every one of them against its model, so that no request pays for that.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from serving.http.problems import ProblemDetails

Probability = Annotated[float | None, Field(ge=0, le=1)]
WATCH_IS = (
    "calibrated probability that this item is among the user's next events (of one second), given that it passes the "
    "filters; null where the ranker did not order it: degraded to the order of retrieval or to the cold-start list, "
    "or further down than the ranker looks"
)
LIKE_IS = (
    "calibrated probability of a rating of at least 4, given that the user watches this item; null where "
    "watch_probability is"
)


class DatasetInfo(BaseModel):
    """`synthetic` data are of our own making and say nothing about MovieLens."""

    name: str
    synthetic: bool
    label: str


class ModelInfo(BaseModel):
    version: int
    bundle_id: str


class AboutData(BaseModel):
    request_id: str
    dataset: DatasetInfo


class AboutModel(AboutData):
    model: ModelInfo


class Item(BaseModel):
    item_id: int
    title: str
    year: int | None
    genres: list[str]


class FoundBy(BaseModel):
    """`rank`: its place in this retriever's own list, 1 is best."""

    retriever: str
    rank: int


class Contribution(BaseModel):
    """What one feature added to the score. `value`: of the feature itself, null where it is missing."""

    feature: str
    group: str
    value: float | None
    contribution: float


class Reason(BaseModel):
    """`kind`: "similar", "watched_after", "genre" or "popular". `item_id`: the item of the history
    that the reason is about."""

    kind: str
    text: str
    item_id: int | None


class Explanation(BaseModel):
    """`merged_rank`: place after retrieval, before the ranker; `ranked_rank`: after it, before diversity; null where
    the ranker did not see the item. `contributions` are the largest; they, `other_contributions` and `bias` sum up to
    the score. The three are null where the ranker did not run or time was short (`degraded` then names "explain").
    """

    found_by: list[FoundBy]
    merged_rank: int | None
    ranked_rank: int | None
    contributions: list[Contribution] | None
    other_contributions: float | None
    bias: float | None
    reasons: list[Reason]


class RankedItem(Item):
    rank: int
    score: float


class RecommendedItem(RankedItem):
    """`score` orders this answer and means nothing across answers."""

    watch_probability: Probability = Field(description=WATCH_IS)
    like_probability: Probability = Field(description=LIKE_IS)
    retrievers: list[str] = Field(description="those that found it")
    explanation: Explanation | None = Field(default=None, description="with explain=true; null otherwise")


class ExperimentArm(BaseModel):
    """That the user belongs to. An arm that ends with ":champion" lacks its own version: the champion answered."""

    name: str
    arm: str


class Recommended(AboutModel):
    """`degraded` names what was left out to answer at all: "user_state" (a store could not be read: what the user has
    rated may show), "ranking" (order of retrieval), "retrieval" (cold-start list), "explain" (no contributions). On a
    further page, `model`, `experiment`, `cold_start` and `degraded` are those of the list that the cursor carries."""

    user_id: int | None
    experiment: ExperimentArm | None
    cold_start: bool
    degraded: list[str]
    items: list[RecommendedItem]
    next_cursor: str | None = Field(
        default=None, description="with paginate=true, while the list goes on; null otherwise"
    )
    timings_ms: dict[str, float]


class RecommendedForUser(BaseModel):
    """One of several answers. `user_id` as in the request; either `items`, by `model`, or a `problem`."""

    user_id: int | str
    model: ModelInfo | None
    experiment: ExperimentArm | None
    cold_start: bool
    degraded: list[str]
    items: list[RecommendedItem]
    problem: ProblemDetails | None = None


class ManyRecommended(AboutModel):
    """`degraded` of the whole call; a state that could not be read is named in that user's own answer."""

    degraded: list[str]
    answers: list[RecommendedForUser]
    timings_ms: dict[str, float]


class Similar(AboutModel):
    """`score`: cosine of the two items' vectors in the two-tower model."""

    item: Item
    items: list[RankedItem]


class ItemDetails(AboutData):
    """`n_ratings`, `mean_rating`: as of the day's statistics; the mean is null without ratings."""

    item: Item
    n_ratings: int
    mean_rating: float | None


class ItemSearch(AboutData):
    """Items whose title has a word that begins with each word of the query, most rated first. `found`: how many."""

    found: int
    items: list[Item]


class ListedRating(Item):
    rating: float
    timestamp: int


class UserHistory(BaseModel):
    """Newest first. `n_events` counts the whole history; at most the window that the state keeps is listed."""

    request_id: str
    user_id: int
    known: bool
    n_events: int
    events: list[ListedRating]


class RecordedEvent(BaseModel):
    """It is committed: every answer from now on knows it. `repeated`: it was stored under this id before; `timestamp`
    is that of the first time."""

    event_id: str
    user_id: int
    item_id: int
    kind: str
    timestamp: int
    repeated: bool


class RecordedOne(RecordedEvent):
    request_id: str


class RecordedMany(BaseModel):
    """In the order of the request."""

    request_id: str
    events: list[RecordedEvent]


class ModelCard(BaseModel):
    """What is being served. `metrics` were measured on the version named by `metrics_of`, the same recipe frozen
    before the test window: a model that has seen the last event cannot be measured on it. `counters` are those of the
    process that answers. `reload`: since when this model is served, when the registry was asked last, and what failed
    last."""

    version: int
    bundle_id: str
    role: str
    dataset: DatasetInfo
    trained_through: int
    trained_through_utc: str
    created_utc: str
    code_version: str
    metrics: dict[str, Any]
    metrics_of: str | None
    ndcg_at_10: dict[str, float | None] | None
    item_statistics_day: str
    n_items: int
    retrievers: list[str]
    genres: list[str]
    counters: dict[str, int]
    reload: dict[str, Any]


class Reloaded(BaseModel):
    """`outcome`: "swapped" (another model is served now), "unchanged", "refused" (it was broken; the old one stays) or
    "failed" (the registry did not answer). `failure`: why, for the last two."""

    request_id: str
    outcome: str
    model: ModelInfo
    failure: str | None = None


class Health(BaseModel):
    """`failing`: stores that cannot be read. Answers go on without what they hold, and say so."""

    status: str
    failing: list[str] = []
