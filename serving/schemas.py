"""What the service takes and gives, typed; the examples here are those of the OpenAPI page.

Stage: serving. In: JSON. Out: validated models. Absent: limits that settings decide (the routes check those), and
whether a movie exists (the service does).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Id = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Seconds = Annotated[int, Field(strict=True, ge=1, le=2**53, description="seconds since 1970-01-01 UTC")]
Stars = Annotated[float, Field(strict=True, ge=0.5, le=5.0, multiple_of=0.5, description="0.5 to 5 stars, in halves")]

MOVIE = {"movie_id": 318, "title": "Shawshank Redemption, The (1994)", "year": 1994, "genres": ["Crime", "Drama"]}
ANSWERED = {
    **MOVIE,
    "rank": 1,
    "score": 1.72,
    "watch_probability": 0.034,
    "like_probability": 0.81,
    "sources": ["two_tower", "ease"],
}
DATASET = {"name": "ml-1m", "synthetic": False, "label": "ml-1m"}
MODEL = {"version": 3, "bundle_id": "ml-1m-20261120T080000-production"}


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class Asked(BaseModel):
    """A body: unknown keys are errors, so that a misspelt filter is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rated(Asked):
    """One rating of a history. Without a timestamp the event counts as a few seconds old, in the order given."""

    movie_id: Id
    rating: Stars
    timestamp: Seconds | None = None


class Profile(Asked):
    gender: Literal["F", "M"] | None = None
    age: int | None = Field(default=None, ge=1, le=120)
    occupation: str | None = Field(default=None, max_length=100)


class FilterBody(Asked):
    """What may be recommended; empty means everything."""

    genres: list[Annotated[str, Field(max_length=100)]] = Field(default=[], max_length=50, description="at least one")
    year_from: int | None = Field(default=None, ge=1800, le=3000)
    year_to: int | None = Field(default=None, ge=1800, le=3000)
    exclude_ids: list[Id] = Field(default=[], max_length=10_000)
    min_ratings: int = Field(default=0, ge=0, description="ratings so far")

    @model_validator(mode="after")
    def _years_in_order(self) -> "FilterBody":
        if self.year_from is not None and self.year_to is not None and self.year_from > self.year_to:
            raise ValueError(f"year_from {self.year_from} lies after year_to {self.year_to}")
        return self


class RecommendationRequest(Asked):
    model_config = _example(
        {
            "history": [{"movie_id": 260, "rating": 5.0}, {"movie_id": 1196, "rating": 4.5}],
            "profile": {"gender": "F", "age": 35, "occupation": None},
            "k": 5,
            "filters": {"year_from": 1990, "min_ratings": 20},
        }
    )

    history: list[Rated] = Field(default=[], description="oldest first; empty gives the cold-start answer")
    profile: Profile = Profile()
    k: int | None = Field(default=None, ge=1)
    filters: FilterBody = FilterBody()


class EventRequest(Asked):
    model_config = _example({"user_id": 42, "movie_id": 260, "rating": 4.5})

    user_id: Id
    movie_id: Id
    rating: Stars
    timestamp: Seconds | None = Field(default=None, description="when it happened; now if not given")


class DatasetInfo(BaseModel):
    """`synthetic` data are of our own making and say nothing about MovieLens."""

    name: str
    synthetic: bool
    label: str


class ModelInfo(BaseModel):
    version: int
    bundle_id: str


class Movie(BaseModel):
    movie_id: int
    title: str
    year: int | None
    genres: list[str]


class RecommendedMovie(Movie):
    """`score` orders this answer and means nothing across answers; `sources`: which retrieval sources found it."""

    rank: int
    score: float
    watch_probability: float | None = Field(
        ge=0,
        le=1,
        description="calibrated probability that this movie is among the user's next events (of one second), given "
        "that it passes the filters; null where the ranker did not order it: degraded to the order of retrieval or to "
        "the cold-start list, or further down than the ranker looks",
    )
    like_probability: float | None = Field(
        ge=0,
        le=1,
        description="calibrated probability of a rating of at least 4, given that the user watches this movie; null "
        "where watch_probability is",
    )
    sources: list[str]


class Recommended(BaseModel):
    """`degraded` names what was left out to answer at all: "user_state" (unreadable: answered as for a stranger, and
    what the user has rated may show), "ranking" (order of retrieval), "retrieval" (cold-start list)."""

    model_config = _example(
        {
            "request_id": "5b1f0c9e",
            "user_id": 42,
            "dataset": DATASET,
            "model": MODEL,
            "cold_start": False,
            "degraded": [],
            "items": [ANSWERED],
            "timings_ms": {"state": 0.4, "retrieval": 1.2, "features": 0.9, "ranking": 1.1, "total": 3.8},
        }
    )

    request_id: str
    user_id: int | None
    dataset: DatasetInfo
    model: ModelInfo
    cold_start: bool
    degraded: list[str]
    items: list[RecommendedMovie]
    timings_ms: dict[str, float]


class SimilarMovie(Movie):
    """`score`: cosine of the two movies' vectors in the two-tower model."""

    rank: int
    score: float


class Similar(BaseModel):
    model_config = _example(
        {
            "request_id": "5b1f0c9e",
            "dataset": DATASET,
            "model": MODEL,
            "movie": MOVIE,
            "items": [{**MOVIE, "movie_id": 527, "title": "Schindler's List (1993)", "rank": 1, "score": 0.81}],
        }
    )

    request_id: str
    dataset: DatasetInfo
    model: ModelInfo
    movie: Movie
    items: list[SimilarMovie]


class RatedMovie(Movie):
    rating: float
    timestamp: int


class UserHistory(BaseModel):
    """Newest first. `n_events` counts the whole history; at most the window that the state keeps is listed."""

    model_config = _example(
        {
            "request_id": "5b1f0c9e",
            "user_id": 42,
            "known": True,
            "n_events": 117,
            "events": [{**MOVIE, "rating": 4.0, "timestamp": 978300000}],
        }
    )

    request_id: str
    user_id: int
    known: bool
    n_events: int
    events: list[RatedMovie]


class Recorded(BaseModel):
    """`applied` False: the event is safe in the log and already counts here, but the store did not take it yet."""

    model_config = _example(
        {
            "request_id": "5b1f0c9e",
            "event_id": "0192f0c2",
            "user_id": 42,
            "movie_id": 260,
            "timestamp": 1794800000,
            "applied": True,
            "n_events": 118,
        }
    )

    request_id: str
    event_id: str
    user_id: int
    movie_id: int
    timestamp: int
    applied: bool
    n_events: int


class ModelCard(BaseModel):
    """What is being served. `metrics` were measured on the version named by `metrics_of`, the same recipe frozen
    before the test window: a model that has seen the last event cannot be measured on it."""

    model_config = _example(
        {
            "version": 3,
            "bundle_id": "ml-1m-20261120T080000-production",
            "role": "production",
            "dataset": DATASET,
            "trained_through": 1046454590,
            "trained_through_utc": "2003-02-28T17:49:50+00:00",
            "created_utc": "2026-11-20T08:12:00+00:00",
            "code_version": "cfc9ab9",
            "metrics": {"ndcg@10": {"mean": 0.0912, "low": 0.0889, "high": 0.0935}},
            "metrics_of": "ml-1m-20261120T080000-evaluation",
            "ndcg_at_10": {"mean": 0.0912, "low": 0.0889, "high": 0.0935},
            "item_statistics_day": "2003-03-01",
            "n_movies": 3883,
            "sources": ["two_tower", "ease", "covisitation", "popularity"],
            "genres": ["Action", "Adventure"],
            "counters": {"requests": 1200, "degraded.ranking": 1},
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
    n_movies: int
    sources: list[str]
    genres: list[str]
    counters: dict[str, int]


class Health(BaseModel):
    model_config = _example({"status": "ok"})

    status: str
