"""What callers send: bodies and query parameters, with the limits of a request (`recsys.limits`).

Unknown keys are errors, so that a misspelt filter is not silently ignored. A list is refused at its first wrong entry:
nobody reads thousands of errors, and building them takes longer than an answer. Whether an item or a genre exists is
not known here.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    RootModel,
    Tag,
    model_validator,
)

from recsys.limits import (
    HIGHEST_RATING,
    LARGEST_ID,
    LONGEST_GENRE,
    LONGEST_KEY,
    LONGEST_SEARCH,
    LONGEST_TEXT,
    LOWEST_RATING,
    MOST_EVENTS,
    MOST_EXCLUDED,
    MOST_EXCLUDED_IN_QUERY,
    MOST_GENRES,
    MOST_HISTORY,
    MOST_USERS,
    RATING_STEP,
)

DEFAULT_K, MOST_K = 10, 100  # items of an answer
LONGEST_CURSOR = 8_000  # characters; the largest one that `paging` makes is shorter


def _whole(value: Any) -> Any:
    """5.0 is an integer in JSON, which has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # after the limits, or the document would not know them
Id = Annotated[int, Field(strict=True, ge=0, le=LARGEST_ID), WHOLE]
Seconds = Annotated[int, Field(strict=True, ge=1, le=LARGEST_ID, description="seconds since 1970-01-01 UTC"), WHOLE]
Stars = Annotated[
    float,
    Field(
        strict=True,
        ge=LOWEST_RATING,
        le=HIGHEST_RATING,
        multiple_of=RATING_STEP,
        description="0.5 to 5 stars, in halves",
    ),
]
Genre = Annotated[str, Field(max_length=LONGEST_GENRE)]
Year = Annotated[int, Field(ge=1800, le=3000), WHOLE]
K = Annotated[int, Field(ge=1, le=MOST_K, description="how many items", examples=[10]), WHOLE]
Count = Annotated[int, Field(ge=0, le=2**31), WHOLE]
Age = Annotated[int, Field(ge=1, le=120), WHOLE]
UserId = Annotated[int, WHOLE] | Annotated[str, Field(max_length=LONGEST_TEXT)]
Key = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY, pattern=r"^[A-Za-z0-9._:/-]*$")]
Cursor = Annotated[str, Field(min_length=1, max_length=LONGEST_CURSOR, pattern="^[A-Za-z0-9_-]*$")]
CURSOR_IS = (
    "`next_cursor` of the answer before: the next k items of the same list. It carries the list, so filters, "
    "diversity, explain and paginate do not go with it"
)
PAGINATE_IS = "also return a cursor to the rest of the list, of 200 items at most"
EXPLAIN_IS = "say for each item which retrievers found it, what moved its score, and why in words"
DIVERSITY_IS = "0 keeps the ranker's order; up to 1 trades score for variety of genres"


def example(shown: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [shown]})


class Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Body(Parameters):
    """JSON knows numbers and truth values, so that "5" is no number and false is not 0."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _no_flood_of_keys(cls, data: Any) -> Any:
        """One error for a body with more keys than there are, instead of one a key."""
        if isinstance(data, dict) and len(data) > len(cls.model_fields):
            unknown = next(key for key in data if key not in cls.model_fields)
            raise ValueError(f"unknown key {str(unknown)[:100]!r}; known are {', '.join(cls.model_fields)}")
        return data


def _check_cursor_alone(request: BaseModel, *also: str) -> None:
    """Raises ValueError where a cursor comes with more than k, or what `also` names."""
    more = sorted(request.model_fields_set - {"k", "cursor", *also})
    if getattr(request, "cursor", None) is not None and more:
        raise ValueError(f"a cursor goes on with its list as it is: leave out {', '.join(more)}")


class RatedItem(Body):
    """One rating of a history. Without a timestamp the event counts as a few seconds old, in the order given."""

    item_id: Id
    rating: Stars
    timestamp: Seconds | None = None


class Profile(Body):
    gender: Literal["F", "M"] | None = None
    age: Age | None = None
    occupation: str | None = Field(default=None, max_length=LONGEST_TEXT)


class YearRange(Parameters):
    year_from: Year | None = Field(default=None, description="released in this year or later", examples=[1990])
    year_to: Year | None = Field(default=None, description="released in this year or earlier", examples=[2005])

    @model_validator(mode="after")
    def _years_in_order(self) -> "YearRange":
        if self.year_from is not None and self.year_to is not None and self.year_from > self.year_to:
            raise ValueError(f"year_from {self.year_from} lies after year_to {self.year_to}")
        return self


class FilterBody(YearRange, Body):
    """What may be recommended; empty means everything."""

    genres: Annotated[list[Genre], FailFast()] = Field(
        default=[], max_length=MOST_GENRES, description="at least one of these"
    )
    exclude_ids: Annotated[list[Id], FailFast()] = Field(default=[], max_length=MOST_EXCLUDED)
    min_ratings: Count = Field(default=0, description="ratings so far, as of the day's statistics")


class ListQuery(YearRange):
    """The query parameters of a list for one user."""

    k: K = DEFAULT_K
    genre: list[Genre] = Field(
        default=[], max_length=MOST_GENRES, description="at least one of these", examples=[["Drama"]]
    )
    exclude_ids: list[Annotated[int, Field(ge=0, le=LARGEST_ID)]] = Field(
        default=[], max_length=MOST_EXCLUDED_IN_QUERY, description="never these items", examples=[[260, 1196]]
    )
    min_ratings: Count = Field(default=0, description="ratings so far, as of the day's statistics")
    diversity: float = Field(default=0.0, ge=0.0, le=1.0, description=DIVERSITY_IS, examples=[0.3])
    explain: bool = Field(default=False, description=EXPLAIN_IS)
    paginate: bool = Field(default=False, description=PAGINATE_IS)
    cursor: Cursor | None = Field(default=None, description=CURSOR_IS)

    @model_validator(mode="after")
    def _cursor_check_cursor_alone(self) -> "ListQuery":
        _check_cursor_alone(self)
        return self


class RecommendationRequest(Body):
    model_config = example(
        {
            "history": [{"item_id": 260, "rating": 5.0}, {"item_id": 1196, "rating": 4.5}],
            "profile": {"gender": "F", "age": 35, "occupation": None},
            "k": 5,
            "filters": {"year_from": 1990, "min_ratings": 20},
            "diversity": 0.2,
            "explain": True,
        }
    )

    history: Annotated[list[RatedItem], FailFast()] = Field(
        default=[], max_length=MOST_HISTORY, description="oldest first; empty gives the cold-start answer"
    )
    profile: Profile = Profile()
    k: K = DEFAULT_K
    filters: FilterBody = FilterBody()
    diversity: float = Field(default=0.0, ge=0.0, le=1.0, description=DIVERSITY_IS)
    explain: bool = Field(default=False, description=EXPLAIN_IS)
    paginate: bool = Field(default=False, description=PAGINATE_IS)
    cursor: Cursor | None = Field(default=None, description=CURSOR_IS + ". Items of a history sent along are left out.")

    @model_validator(mode="after")
    def _cursor_check_cursor_alone(self) -> "RecommendationRequest":
        _check_cursor_alone(self, "history")
        return self


class ManyUsersRequest(Body):
    """The same list for several users."""

    model_config = example({"user_ids": [42, 7, 1234], "k": 5, "filters": {"genres": ["Drama"]}})

    user_ids: Annotated[list[UserId], FailFast()] = Field(
        min_length=1,
        max_length=MOST_USERS,
        description="answered in this order; one that cannot be a user id gets a problem in its place",
    )
    k: K = DEFAULT_K
    filters: FilterBody = FilterBody()
    diversity: float = Field(default=0.0, ge=0.0, le=1.0, description=DIVERSITY_IS)


class SearchQuery(Parameters):
    q: str = Field(min_length=1, max_length=LONGEST_SEARCH, description="words of the title", examples=["star wars"])
    k: K = DEFAULT_K


class UserEvent(Body):
    """What every kind of event has."""

    user_id: Id
    item_id: Id
    timestamp: Seconds | None = Field(default=None, description="when it happened; now if not given")
    event_id: Key | None = Field(
        default=None, description="the caller's own: an event that is sent again under it is stored once"
    )
    request_id: Key | None = Field(default=None, description="of the answer that showed the item")


class RatingEvent(UserEvent):
    model_config = example({"user_id": 42, "item_id": 260, "rating": 4.5})

    kind: Literal["rating"] = "rating"
    rating: Stars


class FeedbackEvent(UserEvent):
    """ "watch": seen, without a rating. "impression": shown to the user. Both are stored, as labels to learn from; the
    user's state, which is made of ratings, stays as it is."""

    model_config = example({"user_id": 42, "item_id": 260, "kind": "watch", "request_id": "5b1f0c9e"})

    kind: Literal["watch", "impression"]


def _kind(event: Any) -> str:
    kind = event.get("kind", "rating") if isinstance(event, dict) else getattr(event, "kind", "rating")
    return "feedback" if kind in ("watch", "impression") else "rating"


def _one_or_many(body: Any) -> str:
    return "many" if isinstance(body, EventBatch) or (isinstance(body, dict) and "events" in body) else "one"


AnyEvent = Annotated[
    Annotated[RatingEvent, Tag("rating")] | Annotated[FeedbackEvent, Tag("feedback")], Discriminator(_kind)
]


class EventBatch(Body):
    """Several events, stored all or none."""

    model_config = example(
        {
            "events": [
                {"user_id": 42, "item_id": 260, "rating": 4.5, "event_id": "a1", "timestamp": 978300000},
                {"user_id": 42, "item_id": 1196, "kind": "impression", "request_id": "5b1f0c9e"},
            ]
        }
    )

    events: Annotated[list[AnyEvent], FailFast()] = Field(
        min_length=1, max_length=MOST_EVENTS, description="answered in this order"
    )


class EventRequest(
    RootModel[
        Annotated[Annotated[AnyEvent, Tag("one")] | Annotated[EventBatch, Tag("many")], Discriminator(_one_or_many)]
    ]
):
    """One event, or several."""

    model_config = ConfigDict(
        frozen=True, json_schema_extra={"examples": [{"user_id": 42, "item_id": 260, "rating": 4.5}]}
    )

    @property
    def events(self) -> list[RatingEvent | FeedbackEvent]:
        return self.root.events if isinstance(self.root, EventBatch) else [self.root]
