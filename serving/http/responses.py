"""What callers get, as the OpenAPI document describes it.

The service makes plain dicts. A test holds every one of them against the model here, so that no request pays for a
second validation.
"""

from typing import Any

from pydantic import BaseModel, Field, RootModel

from serving.http.requests import example

ITEM = {"item_id": 318, "title": "Shawshank Redemption, The (1994)", "year": 1994, "genres": ["Crime", "Drama"]}
DATASET = {"name": "ml-1m", "synthetic": False, "label": "ml-1m"}
MODEL = {"version": 3, "bundle_id": "ml-1m-20261120T080000-production"}

PROBABILITIES = {"watch_probability": 0.034, "like_probability": 0.81}
ANSWERED = {**ITEM, "rank": 1, "score": 1.72, **PROBABILITIES, "retrievers": ["two_tower", "ease"]}
EVENT = {"event_id": "0192f0c2", "user_id": 42, "item_id": 260, "kind": "rating"}
RECORDED = {**EVENT, "timestamp": 1794800000, "repeated": False}
TIMINGS = {"state": 0.4, "retrieval": 1.2, "features": 0.9, "ranking": 1.1, "ordering": 0.1, "total": 3.8}
RECOMMENDED = {
    "request_id": "5b1f0c9e",
    "user_id": 42,
    "dataset": DATASET,
    "model": MODEL,
    **{"cold_start": False, "degraded": []},
    "items": [ANSWERED],
    "timings_ms": TIMINGS,
}


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
    """`kind`: "similar", "watched_after", "popular", "genre" or "collaborative". `item_id`: the item of the history
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


class RecommendedItem(Item):
    """`score` orders this answer and means nothing across answers; `retrievers`: which retrievers found
    it."""

    rank: int
    score: float
    watch_probability: float | None = Field(
        ge=0,
        le=1,
        description="calibrated probability that this item is among the user's next events (of one second), given "
        "that it passes the filters; null where the ranker did not order it: degraded to the order of retrieval or to "
        "the cold-start list, or further down than the ranker looks",
    )
    like_probability: float | None = Field(
        ge=0,
        le=1,
        description="calibrated probability of a rating of at least 4, given that the user watches this item; null "
        "where watch_probability is",
    )
    retrievers: list[str]
    explanation: Explanation | None = Field(default=None, description="with explain=true; null otherwise")


class Recommended(AboutModel):
    """`degraded` names what was left out to answer at all: "user_state" (a store could not be read: what the
    user has rated may show), "ranking" (order of retrieval), "retrieval"
    (cold-start list), "explain" (no contributions). On a further page, `model`, `cold_start` and `degraded` are those
    of the list that the cursor carries."""

    model_config = example(RECOMMENDED)

    user_id: int | None
    cold_start: bool
    degraded: list[str]
    items: list[RecommendedItem]
    next_cursor: str | None = Field(
        default=None, description="with paginate=true, while the list goes on; null otherwise"
    )
    timings_ms: dict[str, float]


class UserProblem(BaseModel):
    type: str
    title: str
    status: int
    detail: str


class RecommendedForUser(BaseModel):
    """One of several answers. `user_id` as it was asked for; either `items` or a `problem`."""

    user_id: int | str
    cold_start: bool
    degraded: list[str]
    items: list[RecommendedItem]
    problem: UserProblem | None = None


class ManyRecommended(AboutModel):
    """`degraded` of the whole call; a state that could not be read is named in that user's own answer."""

    model_config = example(
        {
            "request_id": "5b1f0c9e",
            "dataset": DATASET,
            "model": MODEL,
            "degraded": [],
            "answers": [
                {"user_id": 42, "cold_start": False, "degraded": [], "items": [ANSWERED]},
            ],
            "timings_ms": TIMINGS,
        }
    )

    degraded: list[str]
    answers: list[RecommendedForUser]
    timings_ms: dict[str, float]


class SimilarItem(Item):
    """`score`: cosine of the two items' vectors in the two-tower model."""

    rank: int
    score: float


class Similar(AboutModel):
    model_config = example(
        {
            "request_id": "5b1f0c9e",
            "dataset": DATASET,
            "model": MODEL,
            "item": ITEM,
            "items": [{**ITEM, "item_id": 527, "title": "Schindler's List (1993)", "rank": 1, "score": 0.81}],
        }
    )

    item: Item
    items: list[SimilarItem]


class ItemDetails(AboutData):
    """`n_ratings`, `mean_rating`: as of the day's statistics; the mean is null without ratings."""

    model_config = example(
        {"request_id": "5b1f0c9e", "dataset": DATASET, "item": ITEM, "n_ratings": 2227, "mean_rating": 4.55}
    )

    item: Item
    n_ratings: int
    mean_rating: float | None


class ItemSearch(AboutData):
    """Items whose title has a word that begins with each word asked for, most rated first. `found`: how many."""

    model_config = example({"request_id": "5b1f0c9e", "dataset": DATASET, "found": 1, "items": [ITEM]})

    found: int
    items: list[Item]


class ListedRating(Item):
    rating: float
    timestamp: int


class UserHistory(BaseModel):
    """Newest first. `n_events` counts the whole history; at most the window that the state keeps is listed."""

    model_config = example(
        {
            "request_id": "5b1f0c9e",
            "user_id": 42,
            "known": True,
            "n_events": 117,
            "events": [{**ITEM, "rating": 4.0, "timestamp": 978300000}],
        }
    )

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
    model_config = example({"request_id": "5b1f0c9e", **RECORDED})

    request_id: str


class RecordedMany(BaseModel):
    """In the order of the request."""

    model_config = example({"request_id": "5b1f0c9e", "events": [RECORDED]})

    request_id: str
    events: list[RecordedEvent]


class Recorded(RootModel[RecordedOne | RecordedMany]):
    """Of one event, or of several."""

    model_config = example({"request_id": "5b1f0c9e", **RECORDED})


class ModelCard(BaseModel):
    """What is being served. `metrics` were measured on the version named by `metrics_of`, the same recipe frozen
    before the test window: a model that has seen the last event cannot be measured on it. `counters` are those of the
    process that answers."""

    model_config = example(
        {
            "version": 3,
            "bundle_id": "ml-1m-20261120T080000-production",
            "role": "production",
            "dataset": DATASET,
            "trained_through": 1046454590,
            "trained_through_utc": "2003-02-28T17:49:50+00:00",
            "created_utc": "2026-11-20T08:12:00+00:00",
            "code_version": "cfc9ab9",
            "metrics": {},
            "metrics_of": "ml-1m-20261120T080000-evaluation",
            "ndcg_at_10": {"mean": 0.0912, "low": 0.0889, "high": 0.0935},
            "item_statistics_day": "2003-03-01",
            "n_items": 3883,
            "retrievers": ["two_tower", "ease", "covisitation", "popularity"],
            "genres": ["Action", "Adventure"],
            "counters": {"requests": 1200, "degraded.ranking": 1},
            "reload": {"loaded_utc": "2026-11-20T09:00:00+00:00", "last_check_utc": None, "last_failure": None},
        }
    )

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
    reload: dict[str, Any] = Field(
        default={},
        description="since when this model is served, when the registry was asked last, and what failed last",
    )


class Reloaded(BaseModel):
    """`outcome`: "swapped" (another model is served now), "unchanged", "refused" (it was broken; the old one stays) or
    "failed" (the registry did not answer). `failure`: why, for the last two."""

    model_config = example({"request_id": "5b1f0c9e", "outcome": "swapped", "model": MODEL})

    request_id: str
    outcome: str
    model: ModelInfo
    failure: str | None = None


class Health(BaseModel):
    """`failing`: stores that cannot be read. Answers go on without what they hold, and say so."""

    model_config = example({"status": "ready", "failing": []})

    status: str
    failing: list[str] = []
