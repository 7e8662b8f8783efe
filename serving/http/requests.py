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

from recsys import limits
from recsys.events.table import RATING_KIND
from recsys.filters import Filters

DEFAULT_K, MOST_K = 10, 100  # items of an answer
LONGEST_CURSOR = 8_000  # characters; the largest one that `paging` makes is shorter


def _whole(value: Any) -> Any:
    """5.0 is an integer in JSON, which has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # after the limits, or the document would not know them
Id = Annotated[int, Field(strict=True, ge=0, le=limits.LARGEST_ID), WHOLE]
UserId = Annotated[int, WHOLE] | Annotated[str, Field(max_length=limits.LONGEST_TEXT)]
Seconds = Annotated[
    int, Field(strict=True, ge=1, le=limits.LARGEST_ID, description="seconds since 1970-01-01 UTC"), WHOLE
]
Stars = Annotated[
    float, Field(strict=True, ge=limits.LOWEST_RATING, le=limits.HIGHEST_RATING, multiple_of=limits.RATING_STEP)
]
Year = Annotated[int, Field(ge=1800, le=3000), WHOLE]
Age = Annotated[int, Field(ge=1, le=120), WHOLE]
Key = Annotated[str, Field(min_length=1, max_length=limits.LONGEST_KEY, pattern=r"^[A-Za-z0-9._:/-]*$")]
Genres = Annotated[
    list[Annotated[str, Field(max_length=limits.LONGEST_GENRE)]],
    FailFast(),
    Field(max_length=limits.MOST_GENRES, description="at least one of these", examples=[["Drama"]]),
]
MinRatings = Annotated[
    int, Field(ge=0, le=2**31, description="ratings so far, as of the day's statistics", examples=[20]), WHOLE
]
K = Annotated[int, Field(ge=1, le=MOST_K, description="how many items", examples=[10]), WHOLE]
Diversity = Annotated[
    float, Field(ge=0, le=1, description="0 keeps the ranker's order; 1 trades most score for variety", examples=[0.3])
]


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


class ListOptions(BaseModel):
    """What every request for one list takes, in its query or its body."""

    k: K = DEFAULT_K
    diversity: Diversity = 0.0
    explain: bool = Field(default=False, description="say for each item why it is there")
    paginate: bool = Field(default=False, description="also return a cursor to the rest, of a list of 200 at most")
    cursor: str | None = Field(
        default=None,
        min_length=1,
        max_length=LONGEST_CURSOR,
        pattern="^[A-Za-z0-9_-]*$",
        description="`next_cursor` of the answer before: the next k items of the same list. Only k, and a history "
        "whose items are left out, go with it",
    )

    @model_validator(mode="after")
    def _a_cursor_comes_alone(self) -> "ListOptions":
        fields = type(self).model_fields
        more = sorted(fields[name].alias or name for name in self.model_fields_set - {"k", "cursor", "history"})
        if self.cursor is not None and more:
            raise ValueError(f"a cursor goes on with its list as it is: leave out {', '.join(more)}")
        return self


class FilterFields(BaseModel):
    """What may be recommended; empty means everything."""

    genres: Genres = []
    year_from: Year | None = Field(default=None, description="released in this year or later", examples=[1990])
    year_to: Year | None = Field(default=None, description="released in this year or earlier", examples=[2005])
    exclude_ids: Annotated[list[Id], FailFast()] = Field(default=[], max_length=limits.MOST_EXCLUDED)
    min_ratings: MinRatings = 0

    @model_validator(mode="after")
    def _years_in_order(self) -> "FilterFields":
        if self.year_from is not None and self.year_to is not None and self.year_from > self.year_to:
            raise ValueError(f"year_from {self.year_from} lies after year_to {self.year_to}")
        return self

    def to_filters(self) -> Filters:
        return Filters(tuple(self.genres), self.year_from, self.year_to, tuple(self.exclude_ids), self.min_ratings)


class FilterBody(FilterFields, Body):
    pass


class ListQuery(ListOptions, FilterFields, Parameters):
    """The query parameters of a list for one user."""

    genres: Genres = Field(default=[], alias="genre")
    exclude_ids: list[Annotated[int, Field(ge=0, le=limits.LARGEST_ID)]] = Field(
        default=[], max_length=limits.MOST_EXCLUDED_IN_QUERY, description="never these items", examples=[[260, 1196]]
    )


class RatedItem(Body):
    """One rating of a history. Without a timestamp the event counts as a few seconds old, in the order given."""

    item_id: Id
    rating: Stars
    timestamp: Seconds | None = None


class Profile(Body):
    gender: Literal["F", "M"] | None = None
    age: Age | None = None
    occupation: str | None = Field(default=None, max_length=limits.LONGEST_TEXT)


class RecommendationRequest(ListOptions, Body):
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
        default=[], max_length=limits.MOST_HISTORY, description="oldest first; empty gives the cold-start answer"
    )
    profile: Profile = Profile()
    filters: FilterBody = FilterBody()

    def to_filters(self) -> Filters:
        return self.filters.to_filters()


class ManyUsersRequest(Body):
    """The same list for several users."""

    model_config = example({"user_ids": [42, 7, 1234], "k": 5, "filters": {"genres": ["Drama"]}})

    user_ids: Annotated[list[UserId], FailFast()] = Field(
        min_length=1,
        max_length=limits.MOST_USERS,
        description="answered in this order; one that cannot be a user id gets a problem in its place",
    )
    k: K = DEFAULT_K
    filters: FilterBody = FilterBody()
    diversity: Diversity = 0.0


class SearchQuery(Parameters):
    q: str = Field(
        min_length=1, max_length=limits.LONGEST_SEARCH, description="words of the title", examples=["star wars"]
    )
    k: K = DEFAULT_K


class UserEvent(Body):
    """ "rating" moves the user's state. "watch" (seen, without a rating) and "impression" (shown to the user) are
    stored as labels to learn from."""

    model_config = example({"user_id": 42, "item_id": 260, "rating": 4.5})

    user_id: Id
    item_id: Id
    kind: Literal["rating", "watch", "impression"] = RATING_KIND
    rating: Stars | None = Field(default=None, description="for a rating, and for nothing else")
    timestamp: Seconds | None = Field(default=None, description="when it happened; now if not given")
    event_id: Key | None = Field(
        default=None, description="the caller's own: an event that is sent again under it is stored once"
    )
    request_id: Key | None = Field(default=None, description="of the answer that showed the item")

    @model_validator(mode="after")
    def _stars_where_they_belong(self) -> "UserEvent":
        if (self.kind == RATING_KIND) != (self.rating is not None):
            raise ValueError(
                f"an event of kind {self.kind!r} {'needs a' if self.rating is None else 'takes no'} rating"
            )
        return self


class EventBatch(Body):
    """Several events, stored all or none."""

    events: Annotated[list[UserEvent], FailFast()] = Field(
        min_length=1, max_length=limits.MOST_EVENTS, description="answered in this order"
    )


def _one_or_many(body: Any) -> str:
    return "many" if isinstance(body, EventBatch) or (isinstance(body, dict) and "events" in body) else "one"


class EventRequest(
    RootModel[
        Annotated[Annotated[UserEvent, Tag("one")] | Annotated[EventBatch, Tag("many")], Discriminator(_one_or_many)]
    ]
):
    """One event, or several."""

    model_config = example({"user_id": 42, "item_id": 260, "rating": 4.5})

    @property
    def events(self) -> list[UserEvent]:
        return self.root.events if isinstance(self.root, EventBatch) else [self.root]
