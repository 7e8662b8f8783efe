"""Types that requests and answers share, and the examples that several of them show.

Stage: serving. In: nothing. Out: annotated types. Absent: whole bodies (`asked`, `answered`).
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

LARGEST_ID = 2**53 - 1  # what every reader of JSON keeps exactly; ids of MovieLens have nine digits at most


def _whole(value: Any) -> Any:
    """5.0 is an integer in JSON, which has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # after the limits, or the document would not know them
Id = Annotated[int, Field(strict=True, ge=0, le=LARGEST_ID), WHOLE]
Seconds = Annotated[int, Field(strict=True, ge=1, le=LARGEST_ID, description="seconds since 1970-01-01 UTC"), WHOLE]
Stars = Annotated[float, Field(strict=True, ge=0.5, le=5.0, multiple_of=0.5, description="0.5 to 5 stars, in halves")]

MOVIE = {"item_id": 318, "title": "Shawshank Redemption, The (1994)", "year": 1994, "genres": ["Crime", "Drama"]}
DATASET = {"name": "ml-1m", "synthetic": False, "label": "ml-1m"}
MODEL = {"version": 3, "bundle_id": "ml-1m-20261120T080000-production"}


def example(shown: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [shown]})
