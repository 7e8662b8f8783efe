"""Every reason for which a rating is bad, and that bad rows are all that is lost."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.arrays import IntArray
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.data import validate
from recsys.data.validate import BadRows, RatingsFormat, read_ratings
from recsys.errors import DataError

from .raw_files import faults

PLAIN = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
TAB, COLONS, CSV = (RatingsFormat(PLAIN, separator) for separator in ("\t", "::", ","))
MOVIES = np.array([7, 5, 6])
NOW = 1_750_000_000.5
FUTURE = "future timestamp: {} seconds since 1970 are yet to come; {}"
NO_ID = "is not a whole number from 0 to 9007199254740991 (2^53 - 1)"


def read(
    tmp_path: Path, text: str | bytes, fmt: RatingsFormat = TAB, movies: IntArray = MOVIES
) -> tuple[list[tuple[object, ...]], list[tuple[int, str]]]:
    """The good rows, and line and reason of the bad ones."""
    path = tmp_path / "ratings"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    frame = read_ratings(path, fmt, movies, "movies", BadRows(out := io.StringIO()), now=NOW)
    assert [str(kind) for kind in frame.dtypes] == ["int64", "int64", "float32", "int64"]
    return list(frame.itertuples(index=False, name=None)), [(line, reason) for _, line, reason in faults(out)]


NO_RATING = "is not one of 0.5, 1.0, 1.5 and so on to 5.0"
NO_TIME = "is not a whole number of seconds since 1970"
BAD = [
    ("9007199254740992,5,3,10", f"bad user id: '9007199254740992' {NO_ID}"),
    ("0x1,5,3,10", f"bad user id: '0x1' {NO_ID}"),
    ("99999999999999999999,5,3,10", f"bad user id: '99999999999999999999' {NO_ID}"),
    ("1,-5,3,10", f"bad movie id: '-5' {NO_ID}"),
    ("1,,3,10", f"bad movie id: '' {NO_ID}"),
    ("1,5,0,10", f"bad rating: '0' {NO_RATING}"),
    ("1,5,5.5,10", f"bad rating: '5.5' {NO_RATING}"),
    ("1,5,3.7,10", f"bad rating: '3.7' {NO_RATING}"),
    ("1,5,nan,10", f"bad rating: 'nan' {NO_RATING}"),
    ("1,5,,10", f"bad rating: '' {NO_RATING}"),
    ("1,5,3,-10", f"bad timestamp: '-10' {NO_TIME}"),
    ("1,5,3,10.5", f"bad timestamp: '10.5' {NO_TIME}"),
    ("1,5,3,1750000006", FUTURE.format(1750000006, "perhaps another epoch or unit")),
    ("1,5,3,978300000000", FUTURE.format(978300000000, "as milliseconds it would be in the past")),
    ("1,5,3,1700000000000000000", FUTURE.format(1700000000000000000, "as nanoseconds it would be in the past")),
    ("1,8,3,10", "unknown movie: 8 is not in movies"),
    ("1,5,3", "broken line: 3 fields instead of 4"),
    ("1,5,3,10,11", "broken line: 5 fields instead of 4"),
    ("0000000000000000001,5,3,10", "broken line: not written as a rating of this layout is"),
]


@pytest.mark.parametrize("fmt", [TAB, COLONS, CSV], ids=["tab", "colons", "csv"])
@pytest.mark.parametrize(("row", "reason"), BAD)
def test_each_reason_with_its_line(tmp_path: Path, fmt: RatingsFormat, row: str, reason: str) -> None:
    lines = ["1,7,4,11", row, "0,6,0.5,1750000005"]
    text = "".join(line.replace(",", fmt.separator) + "\n" for line in lines)
    good, bad = read(tmp_path, "header\n" + text if fmt.is_csv else text, fmt)
    assert bad == [(2 + fmt.is_csv, reason)]
    assert good == [(1, 7, 4.0, 11), (0, 6, 0.5, 1750000005)]


def test_a_broken_quote_does_not_swallow_the_next_line(tmp_path: Path) -> None:
    good, bad = read(tmp_path, 'h\n1,5,"3,10\n1,6,"3",11\n2,7,4,"12\n', CSV)
    assert good == [(1, 6, 3.0, 11)]
    assert bad == [(2, "broken line: 0 fields instead of 4"), (4, "broken line: 0 fields instead of 4")]


def test_a_lone_carriage_return_does_not_make_two_rows(tmp_path: Path) -> None:
    good, bad = read(tmp_path, "1\t5\t3\t10\r1\t6\t3\t10\n2\t7\t4\t12\r\n")
    assert good == [(2, 7, 4.0, 12)]
    assert bad == [(1, "broken line: 7 fields instead of 4")]


def test_the_first_of_several_ratings_of_one_movie_stays(tmp_path: Path) -> None:
    rows = ["1,5,9,1", "1,5,3,10", "2,5,3,10", "1,5,4,2", "1,6,4,2", "2,5,1,1", "1,5,4,3"]
    good, bad = read(tmp_path, "\n".join(row.replace(",", "\t") for row in rows))
    assert good == [(1, 5, 3.0, 10), (2, 5, 3.0, 10), (1, 6, 4.0, 2)]
    assert bad == [
        (1, "bad rating: '9' is not one of 0.5, 1.0, 1.5 and so on to 5.0"),
        (4, "duplicate: user 1 rated movie 5 on line 2 already"),
        (6, "duplicate: user 2 rated movie 5 on line 3 already"),
        (7, "duplicate: user 1 rated movie 5 on line 2 already"),
    ]


@pytest.mark.parametrize("text", ["", "\n", "\r\n\r\n"])
def test_no_rows(tmp_path: Path, text: str) -> None:
    good, bad = read(tmp_path, text)
    assert good == []
    assert bad == []
    assert read(tmp_path, "header\n" + text, CSV)[0] == []


def test_no_movies_make_every_rating_unknown(tmp_path: Path) -> None:
    none = np.array([], dtype=np.int64)
    assert read(tmp_path, "1\t5\t3\t10\n", movies=none) == ([], [(1, "unknown movie: 5 is not in movies")])


CELLS = st.sampled_from(["1", "2", "5", "6", "8", "0", "-1", "3.5", "3.7", "", " 5", "5 ", "x", "nan", '"5"', '"'])


def good_rows(rows: list[list[str]], quotes: bool) -> list[tuple[int, ...]]:
    """Line by line, without the pattern."""
    good: dict[tuple[int, int], tuple[int, ...]] = {}
    for row in rows:
        cells = [re.sub('^"(.*)"$', r"\1", cell) if quotes else cell.strip() for cell in row]
        whole = len(cells) == 4 and all(cells[i].strip().isdecimal() for i in (0, 1, 3))
        if whole and int(cells[1]) in MOVIES and cells[2].strip() in ("1", "2", "5", "3.5"):
            user, item = int(cells[0]), int(cells[1])
            good.setdefault((user, item), (user, item, float(cells[2]), int(cells[3])))
    return list(good.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(CELLS, min_size=3, max_size=5), max_size=12), st.sampled_from([TAB, COLONS, CSV]))
def test_every_row_is_good_or_bad_whatever_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: list[list[str]], fmt: RatingsFormat
) -> None:
    text = ("h\n" if fmt.is_csv else "") + "".join(fmt.separator.join(row) + "\n" for row in cells)
    with monkeypatch.context() as patch:
        patch.setattr(validate, "BLOCK_BYTES", 1)  # a block a line
        line_by_line = read(tmp_path, text, fmt)
    good, bad = read(tmp_path, text, fmt)
    assert (good, bad) == line_by_line
    assert good == good_rows(cells, quotes=fmt.is_csv)
    assert len(good) + len(bad) == len(cells)


def test_the_error_lists_ten_rows_and_counts_all(tmp_path: Path) -> None:
    rows = ["1\t5\t3\t1"] + [f"{user}\t99\t3\t1" for user in range(1, 1500)] + ["1\t5\t4\t2", "bad"]
    (tmp_path / "ratings").write_text("\n".join(rows))
    bad = BadRows()
    read_ratings(tmp_path / "ratings", TAB, MOVIES, "movies", bad, now=NOW)
    with pytest.raises(DataError) as caught:
        bad.raise_if_any(tmp_path)
    text = str(caught.value).splitlines()
    assert text[0] == f"{tmp_path} has 1501 bad rows (1499 unknown movie, 1 broken line, 1 duplicate):"
    assert text[1] == "  ratings line 2: unknown movie: 99 is not in movies"
    assert len(text) == 13
    assert text[11] == "  and 1491 more"
    assert "--skip-bad-rows" in text[12]
