"""Each official layout read with exact values, and every way not to be one."""

import io
from pathlib import Path

import pytest

from recsys.data.layouts import find_layout, read_events, read_movies, read_users, year_of
from recsys.data.validate import BadRows
from recsys.errors import DataError

from .raw_files import LAYOUTS, ML_1M_FILES, ML_100K_FILES, ML_LATEST_FILES, faults, flags, write_files


def rows(frame: object) -> list[tuple[object, ...]]:
    plain = frame.astype(object).where(frame.notna(), None)  # type: ignore[attr-defined]
    return [tuple(row) for row in plain.itertuples(index=False)]


def read(folder: Path) -> tuple[list[tuple[object, ...]], ...]:
    layout, bad = find_layout(folder), BadRows()
    movies = read_movies(layout, bad)
    result = rows(read_events(layout, movies["item_id"], bad, now=2e9)), rows(movies), rows(read_users(layout, bad))
    bad.raise_if_any(folder)
    return result


def test_ml_100k(tmp_path: Path) -> None:
    events, movies, users = read(write_files(tmp_path, ML_100K_FILES))
    assert events == [(1, 1, 5.0, 880000002), (2, 3, 1.0, 880000001), (1, 2, 3.0, 880000000)]
    assert movies == [
        (1, "Café of Days (1995)", 1995, ["Action", "Comedy"]),
        (2, "unknown", None, []),
        (3, "Without a Year", 1997, ["Animation", "Children's"]),
    ]
    assert users == [(1, "M", 24, "technician"), (2, "F", 53, "other"), (9, "F", 33, "writer")]


def test_ml_100k_takes_genre_names_from_u_genre(tmp_path: Path) -> None:
    files = {
        "u.data": b"1\t1\t5\t880000002\n",
        "u.item": b"1|One (1995)|01-Jan-1995|||0|1|1\n",
        "u.genre": b"unknown|0\nOld|1\nNew|2\n\n",
    }
    _, movies, users = read(write_files(tmp_path, files))
    assert movies == [(1, "One (1995)", 1995, ["Old", "New"])]
    assert users == []


def test_ml_1m(tmp_path: Path) -> None:
    events, movies, users = read(write_files(tmp_path, ML_1M_FILES))
    assert events == [(1, 10, 3.5, 978300000), (2, 11, 4.0, 978300001)]
    assert movies == [
        (10, "Smörgås (1990) (V)", 1990, ["Comedy", "Sci-Fi"]),
        (11, "Foo:: Bar::Baz (2001)", 2001, []),
        (12, "Plain", None, ["Drama"]),
    ]
    assert users == [(1, "F", 1, "k-12 student"), (2, "M", 56, "other")]


def test_ml_latest(tmp_path: Path) -> None:
    events, movies, users = read(write_files(tmp_path, ML_LATEST_FILES))
    assert events == [(1, 7, 0.5, 1000000000), (3, 8, 5.0, 1000000000)]
    assert movies == [
        (7, 'Ghost, The "Big" One (2006–2007)', 2006, ["Drama", "Film-Noir"]),
        (8, "Babylon", None, []),
        (9, "Never Rated (2009– )", 2009, ["Comedy"]),
    ]
    assert users == []


def test_csv_columns_go_by_name_quotes_and_byte_order_mark_allowed(tmp_path: Path) -> None:
    files = {
        "ratings.csv": b'\xef\xbb\xbf"timestamp","userId","extra","movieId","rating"\n'
        b'"1000","1","x, y","7","4.5"\n2000,2,z,7,1\n',
        "movies.csv": b"\xef\xbb\xbfgenres,movieId,title\nDrama,7,Seven (1995)\n",
    }
    events, movies, _ = read(write_files(tmp_path, files))
    assert events == [(1, 7, 4.5, 1000), (2, 7, 1.0, 2000)]
    assert movies == [(7, "Seven (1995)", 1995, ["Drama"])]


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("A (1995) ", 1995),
        ("A (1975-1979)", 1975),
        ("2001 (A) (1968) (TV)", 1968),
        ("A (1995) B", None),
        ("A (3000)", None),
    ],
)
def test_the_year_is_at_the_end_of_a_title(title: str, year: int | None) -> None:
    assert year_of(title) == year


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_files_may_lie_one_folder_down(tmp_path: Path, name: str) -> None:
    (tmp_path / "__MACOSX").mkdir()
    write_files(tmp_path / "inside", LAYOUTS[name])
    layout = find_layout(tmp_path)
    assert (layout.name, layout.folder) == (name, tmp_path / "inside")
    assert {path.name for path in layout.files} == set(LAYOUTS[name])
    assert not layout.synthetic
    (tmp_path / "SYNTHETIC.json").write_text("{}")
    assert find_layout(tmp_path).synthetic


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    for missing in list(LAYOUTS[name])[:2]:
        folder = tmp_path / missing
        write_files(folder / "ml", {k: v for k, v in LAYOUTS[name].items() if k != missing})
        with pytest.raises(DataError, match=rf"^{missing} is missing in .*ml-100k: u\.data and u\.item"):
            find_layout(folder)


def test_no_data_several_data_or_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no MovieLens data"):
        find_layout(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_layout(tmp_path / "nowhere")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"is no folder\. Give an archive with --archive"):
        find_layout(tmp_path / "a.zip")
    for name, files in LAYOUTS.items():
        write_files(tmp_path / name, files)
    with pytest.raises(DataError, match=r"several data sets \(ml-100k/u.data, ml-1m/ratings.dat"):
        find_layout(tmp_path)


def test_a_header_must_name_the_columns(tmp_path: Path) -> None:
    write_files(tmp_path, {**ML_LATEST_FILES, "ratings.csv": b"1,7,0.5,1000000000\n"})
    with pytest.raises(DataError, match=r"ratings.csv: line 1 must name the columns userId,movieId,rating,timestamp"):
        read(tmp_path)
    write_files(tmp_path, {**ML_LATEST_FILES, "movies.csv": b"movieId,title\n7,Seven\n"})
    with pytest.raises(DataError, match=r"movies.csv: line 1 .* does not name genres once"):
        read(tmp_path)
    write_files(tmp_path, {**ML_LATEST_FILES, "ratings.csv": b"\n" + ML_LATEST_FILES["ratings.csv"]})
    with pytest.raises(DataError, match=r"ratings.csv: line 1 must name"):
        read(tmp_path)


def collected(folder: Path, files: dict[str, bytes]) -> list[tuple[str, int, str]]:
    layout, bad = find_layout(write_files(folder, files)), BadRows(out := io.StringIO())
    read_movies(layout, bad)
    read_users(layout, bad)
    return faults(out)


def test_bad_rows_of_movies_and_users_ml_100k(tmp_path: Path) -> None:
    item = f"1|A (1990)||||{flags(1)}\nx|B||||{flags(1)}\n2|C||||1|0\n1|D||||{flags(2)}\n3|E||||{flags(1)[:-1]}2\n"
    user = b"1|24|M|artist|1\n1|25|F|artist|1\n2|24|M|artist\n-1|24|M|artist|1\n3|24|Q|artist|1\n4|-2|M|artist|1\n"
    assert collected(tmp_path, {**ML_100K_FILES, "u.item": item.encode(), "u.user": user}) == [
        ("u.item", 2, "bad movie id: 'x' is not a whole number from 0 to 9007199254740991 (2^53 - 1)"),
        ("u.item", 3, "broken line: not a movie as the ml-100k layout writes it"),
        ("u.item", 4, "duplicate: movie 1 has a line already"),
        ("u.item", 5, "broken line: not a movie as the ml-100k layout writes it"),
        ("u.user", 2, "duplicate: user 1 has a line already"),
        ("u.user", 3, "broken line: 4 fields instead of 5"),
        ("u.user", 4, "bad user id: '-1' is not a whole number from 0 to 9007199254740991 (2^53 - 1)"),
        ("u.user", 5, "bad gender: 'Q' is neither F nor M"),
        ("u.user", 6, "bad age: '-2' is no number of years"),
    ]


def test_bad_rows_of_movies_and_users_ml_1m(tmp_path: Path) -> None:
    files = {**ML_1M_FILES, "movies.dat": b"1::A\n\n2::B::Drama\n", "users.dat": b"1::F::1::21::0\n2::::::::\n"}
    assert collected(tmp_path, files) == [
        ("movies.dat", 1, "broken line: not a movie as the ml-1m layout writes it"),
        ("movies.dat", 2, "broken line: not a movie as the ml-1m layout writes it"),
        ("users.dat", 1, "bad occupation: '21' is no code from 0 to 20"),
    ]
    assert rows(read_users(find_layout(tmp_path), BadRows())) == [(2, None, None, None)]


def test_bad_rows_of_movies_csv(tmp_path: Path) -> None:
    movies = (
        b'movieId,title,genres\n1,"A (1990),Drama\n2,B,Drama,x\n3,\xff,Drama\n5,\xc3\xa9,Drama\n4,C (1990),Drama\n\n'
    )
    assert collected(tmp_path, {**ML_LATEST_FILES, "movies.csv": movies}) == [
        ("movies.csv", 2, "broken line: not a movie as the ml-latest layout writes it"),
        ("movies.csv", 3, "broken line: not a movie as the ml-latest layout writes it"),
        ("movies.csv", 4, "broken line: not UTF-8 text, as other lines are"),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "latin-1"])
def test_titles_are_read_as_they_are_written(layout: str, encoding: str, tmp_path: Path) -> None:
    title = "L’Avventura – Café (1960)" if encoding != "latin-1" else "Café (1960)"
    movies = {
        "ml-100k": ("u.item", f"1|{title}||||{flags(1)}\n2|B||||{flags(1)}\n3|C||||{flags(1)}\n"),
        "ml-1m": ("movies.dat", f"10::{title}::Drama\n11::B::Drama\n"),
        "ml-latest": ("movies.csv", f"movieId,title,genres\n7,{title},Drama\n8,B,Drama\n"),
    }
    name, text = movies[layout]
    write_files(tmp_path, {**LAYOUTS[layout], name: text.encode(encoding)})
    read_movies(find_layout(tmp_path), bad := BadRows())
    assert bad.count == 0
    assert read_movies(find_layout(tmp_path), bad)["title"][0] == title


def test_utf_16_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {**ML_1M_FILES, "movies.dat": "10::A::Drama\n".encode("utf-16")})
    with pytest.raises(DataError, match="is UTF-16 text"):
        read_movies(find_layout(tmp_path), BadRows())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_byte_order_marks_change_nothing(layout: str, tmp_path: Path) -> None:
    """At the start of every file, and where two files were joined."""
    plain = write_files(tmp_path / "plain", LAYOUTS[layout])
    marked = {
        name: b"\xef\xbb\xbf" + text.replace(b"\n2", b"\n\xef\xbb\xbf2") for name, text in LAYOUTS[layout].items()
    }
    assert read(write_files(tmp_path / "marked", marked))[0] == read(plain)[0]
