"""The items as arrays and the id map."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, TITLE, USER_ID, YEAR
from recsys.features.catalogue import MAX_TITLE_WORDS, Catalogue, title_words

ITEMS = pd.DataFrame(
    {
        ITEM_ID: [30, 10, 20, 50],
        TITLE: ["The Night Train (1980)", "The Night (1950)", "Night of the The (1990)", "Alone"],
        YEAR: pd.array([1980, 1950, 1990, None], dtype="Int32"),
        GENRES: [["Drama", "Action"], ["Action"], [], ["Western"]],
    }
)
USERS = pd.DataFrame({USER_ID: [1, 2, 3], GENDER: "F", AGE: 20, OCCUPATION: ["writer", None, "artist"]})
CATALOGUE = Catalogue.from_tables(ITEMS, USERS)


def test_rows_are_in_the_order_of_ids_with_everything_in_its_row() -> None:
    assert CATALOGUE.item_ids.tolist() == [10, 20, 30, 50]
    assert CATALOGUE.titles[2] == "The Night Train (1980)"
    assert CATALOGUE.genre_names == ("Action", "Drama", "Western")
    assert CATALOGUE.genres.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert CATALOGUE.genres_of(2) == ["Action", "Drama"]
    np.testing.assert_array_equal(CATALOGUE.years, np.array([1950, 1990, 1980, np.nan], np.float32))
    assert CATALOGUE.occupations == ("", "artist", "writer")
    assert len(CATALOGUE) == 4


def test_words_in_three_titles_make_the_vocabulary() -> None:
    assert CATALOGUE.vocabulary == ("", "night", "the")
    assert CATALOGUE.words.tolist() == [
        [2, 1, 0, 0, 0, 0],
        [1, 2, 2, 0, 0, 0],
        [2, 1, 0, 0, 0, 0],
        [0] * MAX_TITLE_WORDS,
    ]


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("One Two Three Four Five Six Seven", ["one", "two", "three", "four", "five", "six"]),
        ("Amélie (Le fabuleux destin) (2001) ", ["amélie", "le", "fabuleux", "destin"]),
        ("", []),
    ],
)
def test_title_words(title: str, words: list[str]) -> None:
    assert title_words(title) == words


def test_ids_and_rows_map_both_ways_and_unknown_is_minus_1() -> None:
    assert CATALOGUE.to_idx([[10, 50], [11, 9_999], [-1, 5]]).tolist() == [[0, 3], [-1, -1], [-1, -1]]
    assert CATALOGUE.to_ids(np.array([[3, -1], [0, 2]])).tolist() == [[50, -1], [10, 30]]
    assert Catalogue.from_tables(ITEMS.iloc[:0], USERS).to_idx([10, 20]).tolist() == [-1, -1]


@pytest.mark.parametrize("items", [ITEMS, ITEMS.iloc[:0]])
def test_saved_and_loaded_it_is_the_same(items: pd.DataFrame, tmp_path: Path) -> None:
    before = Catalogue.from_tables(items, USERS)
    before.save(tmp_path)
    after = Catalogue.load(tmp_path)
    for name in Catalogue.__dataclass_fields__:
        a, b = getattr(before, name), getattr(after, name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, name
            assert a.shape == b.shape, name
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


def test_profiles_become_small_integers_and_0_is_unknown() -> None:
    assert CATALOGUE.profile_sizes == (3, 8, 3)
    ages = [np.nan, 0, -4, 1, 17, 18, 24, 25, 34, 35, 44, 45, 49, 50, 55, 56, 99]
    encoded = CATALOGUE.encode_profiles(
        ["F", "M", "", *["x"] * (len(ages) - 3)],
        np.array(ages, dtype=np.float64),
        ["writer", "artist", "", *["smith"] * (len(ages) - 3)],
    )
    assert encoded[:, 0].tolist() == [1, 2, *[0] * (len(ages) - 2)]
    assert encoded[:, 1].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert encoded[:, 2].tolist() == [2, 1, *[0] * (len(ages) - 2)]
    assert CATALOGUE.encode_profiles([], np.zeros(0), []).shape == (0, 3)


def test_an_item_without_a_year_stands_at_the_median() -> None:
    np.testing.assert_array_equal(CATALOGUE.decades, np.array([195, 199, 198, 198], np.float32))
    np.testing.assert_array_equal(CATALOGUE.known_decades, np.array([195, 199, 198, np.nan], np.float32))
    assert CATALOGUE.mean_decade == 197.5
    assert CATALOGUE.genre_counts.tolist() == [1, 1, 2, 1], "at least 1"
    yearless = Catalogue.from_tables(ITEMS.assign(**{YEAR: pd.array([None] * 4, dtype="Int32")}), USERS)
    assert yearless.decades.tolist() == [200.0] * 4
