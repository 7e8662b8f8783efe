"""The three official MovieLens layouts: which one a folder has, and how its movies and users are read.

Rows that make no sense go to `BadRows`. The checks of ratings, which are many and must be fast, are in `validate`.

    ml-100k    u.data, tab-separated; u.item (and u.user), with "|", Latin-1, one 0/1 field a genre
    ml-1m      ratings.dat, movies.dat (and users.dat), with "::"; ml-10m too
    ml-latest  ratings.csv, movies.csv; ml-20m, ml-25m, ml-32m, ml-latest-small too
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.data.validate import BOM, BadRows, RatingsFormat, decoded, id_fault, read_ratings, split_csv
from recsys.errors import DataError

ML_100K: Final = "ml-100k"
ML_1M: Final = "ml-1m"
ML_LATEST: Final = "ml-latest"

SYNTHETIC_MARK: Final = "SYNTHETIC.json"  # `recsys.data.synthetic` puts it beside the files it makes

# Files of each layout: ratings, movies, and the ones that may be missing (users first).
_FILES: Final = {
    ML_100K: ("u.data", "u.item", ("u.user", "u.genre")),
    ML_1M: ("ratings.dat", "movies.dat", ("users.dat",)),
    ML_LATEST: ("ratings.csv", "movies.csv", ()),
}
_OFFICIAL_ENCODINGS: Final = {ML_100K: ("latin-1",), ML_1M: ("latin-1", "utf-8"), ML_LATEST: ("utf-8",)}
KNOWN_FILES: Final = frozenset(name for r, m, others in _FILES.values() for name in (r, m, *others))
UNDERSTOOD: Final = "; ".join(f"{layout}: {r} and {m}" for layout, (r, m, _) in _FILES.items())

_PLAIN: Final = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
_CSV_NAMES: Final = {"userid": USER_ID, "movieid": ITEM_ID, "rating": RATING, "timestamp": TIMESTAMP}

# ml-100k, where u.genre is missing; in the order of the flags.
_GENRES_100K: Final = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical"
    "|Mystery|Romance|Sci-Fi|Thriller|War|Western"
)
_NO_GENRE: Final = {"", "unknown", "(no genres listed)"}
# ml-1m README, "Occupation is chosen from the following choices": the code is the position.
_OCCUPATIONS_1M: Final = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|doctor/health care"
    "|executive/managerial|farmer|homemaker|k-12 student|lawyer|programmer|retired|sales/marketing|scientist"
    "|self-employed|technician/engineer|tradesman/craftsman|unemployed|writer"
)

# "(1995)", "(2006–2007)" and "(2009– )" at the end; after it at most other parentheses, as in "(1996) (V)".
_YEAR: Final = re.compile(r"\(([0-9]{4})(?:\s*[-–—]\s*(?:[0-9]{4})?\s*)?\)(?:\s*\([^()]*\))*\s*$")
_FIRST_YEAR, _LAST_YEAR = 1870, 2100  # moving pictures; other numbers in parentheses are part of a title


@dataclass(frozen=True)
class Layout:
    """One data set on disk: the name of its layout, its folder, and the folder that the caller named."""

    name: str
    folder: Path
    named_folder: Path

    @property
    def ratings(self) -> Path:
        return self.folder / _FILES[self.name][0]

    @property
    def movies(self) -> Path:
        return self.folder / _FILES[self.name][1]

    @property
    def users(self) -> Path | None:
        """None where the layout has no such file, or this copy lacks it."""
        others = _FILES[self.name][2]
        return self.folder / others[0] if others and (self.folder / others[0]).is_file() else None

    @property
    def synthetic(self) -> bool:
        return any((place / SYNTHETIC_MARK).is_file() for place in (self.folder, self.named_folder))

    @property
    def files(self) -> list[Path]:
        others = [self.folder / name for name in _FILES[self.name][2]]
        return [self.ratings, self.movies, *(path for path in others if path.is_file())]


def find_layout(folder: Path) -> Layout:
    """The data set in `folder`, or in the one folder below it, as the official archives have it.

    DataError when there is none, a required file is missing, or there are several to choose from.
    """
    if not folder.is_dir():
        hint = " Give an archive with --archive." if folder.suffix == ".zip" else ""
        raise DataError(f"{folder} is no folder.{hint}" if folder.exists() else f"{folder} does not exist.")
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    for level in ([folder], below):
        found = [
            Layout(name, place, folder)
            for place in level
            for name, (ratings, movies, _) in _FILES.items()
            if (place / ratings).is_file() and (place / movies).is_file()
        ]
        if len(found) > 1:
            several = ", ".join(f"{layout.ratings.relative_to(folder)}" for layout in found)
            raise DataError(f"{folder} holds several data sets ({several}). Name a folder that holds one.")
        if found:
            return found[0]
    for place in (folder, *below):
        for name, (ratings, movies, _) in _FILES.items():
            for present, missing in ((ratings, movies), (movies, ratings)):
                if (place / present).is_file():
                    raise DataError(
                        f"{missing} is missing in {place}: the {name} layout needs it beside {present}. "
                        f"Layouts understood: {UNDERSTOOD}."
                    )
    raise DataError(
        f"{folder} holds no MovieLens data, neither itself nor one folder down. Layouts understood: {UNDERSTOOD}."
    )


def year_of(title: str) -> int | None:
    """Year of release from the end of a title; of a span, the first."""
    match = _YEAR.search(title)
    year = int(match[1]) if match else 0
    return year if _FIRST_YEAR <= year <= _LAST_YEAR else None


def _lines(path: Path, *, skip_header: bool = False) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes without line end and byte-order mark); blank lines at the end are no rows."""
    raw_lines = path.read_bytes().removeprefix(BOM).rstrip(b"\r\n \t").split(b"\n")
    if raw_lines == [b""]:
        return
    for number, raw in enumerate(raw_lines, 1):
        if number > 1 or not skip_header:
            yield number, raw.rstrip(b"\r").removeprefix(BOM)


def encoding_of(path: Path) -> str:
    """How the text of a file is written: "ascii", "utf-8", "cp1252" or "latin-1". The whole file decides.

    Official files are Latin-1 or UTF-8; people save them again as UTF-8, or as Windows' CP-1252. A file with one line
    of good UTF-8 beyond ASCII is UTF-8, and its other lines have to be too. Raises DataError for UTF-16.
    """
    raw = path.read_bytes().replace(BOM, b"")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16 text. Save it as UTF-8.")
    if raw.isascii():
        return "ascii"
    if any(not line.isascii() and _is(line, "utf-8") for line in raw.split(b"\n")):
        return "utf-8"
    return "cp1252" if re.search(rb"[\x80-\x9f]", raw) and _is(raw, "cp1252") else "latin-1"


def unusual_encodings(layout: Layout) -> Iterator[str]:
    """A sentence for each file that is not written as the official ones are."""
    for path in (layout.movies, layout.users):
        if path is not None and (encoding := encoding_of(path)) not in ("ascii", *_OFFICIAL_ENCODINGS[layout.name]):
            yield f"{path.name} is read as {encoding}; the official one is {_OFFICIAL_ENCODINGS[layout.name][0]}"


def _is(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _header(path: Path) -> list[str]:
    with path.open("rb") as handle:
        first = decoded(handle.readline().removeprefix(BOM))
    return [name.strip().lower() for name in split_csv(first)]


def _need_columns(path: Path, header: list[str], names: list[str]) -> None:
    missing = [name for name in names if header.count(name.lower()) != 1]
    if missing:
        raise DataError(
            f"{path}: line 1 must name the columns {','.join(names)}; it does not name {', '.join(missing)} once."
        )


def _ratings_format(layout: Layout) -> RatingsFormat:
    if layout.name == ML_100K:
        return RatingsFormat(_PLAIN, "\t", quoted=False, header=False)
    if layout.name == ML_1M:
        return RatingsFormat(_PLAIN, "::", quoted=False, header=False)
    header = _header(layout.ratings)
    if not header:  # an empty file: no ratings, which the caller words
        return RatingsFormat(_PLAIN, ",", quoted=True, header=True)
    _need_columns(layout.ratings, header, ["userId", "movieId", "rating", "timestamp"])
    columns = tuple(_CSV_NAMES.get(name, f"other {i}") for i, name in enumerate(header))
    return RatingsFormat(columns, ",", quoted=True, header=True)


def read_events(layout: Layout, movie_ids: pd.Series, bad: BadRows, *, now: float) -> pd.DataFrame:
    """user_id, item_id, rating, timestamp of the good rows, in the order of the file; one after `now` is bad."""
    ids = np.asarray(movie_ids, dtype=np.int64)
    return read_ratings(layout.ratings, _ratings_format(layout), ids, layout.movies.name, bad, now=now)


# How a line reads: the id and the other fields as text, or, of a bad line, what is wrong with it.
_Parsed = tuple[str, ...] | str


def _table(
    path: Path, parse: Callable[[str], _Parsed], of: str, bad: BadRows, *, skip_header: bool = False
) -> dict[int, Sequence[str]]:
    """The other fields of each good line by id; of two lines with one id the first stays."""
    encoding = encoding_of(path)
    rows: dict[int, Sequence[str]] = {}
    for line, raw in _lines(path, skip_header=skip_header):
        try:
            parsed = parse(text := raw.decode(encoding))
        except UnicodeDecodeError:
            parsed, text = "broken line: not UTF-8 text, as other lines are", decoded(raw)
        fault = parsed if isinstance(parsed, str) else id_fault(parsed[0].strip(), of)
        if not fault and int(parsed[0]) in rows:
            fault = f"duplicate: {of} {int(parsed[0])} has a line already"
        if fault:
            bad.add(path.name, line, fault, text)
        else:
            rows[int(parsed[0])] = parsed[1:]
    return rows


def _parse_item(text: str, genres: list[str]) -> _Parsed:
    fields = text.split("|")
    flags = fields[5:]
    if len(flags) != len(genres) or not set(flags) <= {"0", "1"}:
        return _no_movie(ML_100K)
    names = "|".join(name for name, flag in zip(genres, flags, strict=True) if flag == "1")
    return fields[0], fields[1], fields[2], names


def _parse_dat(text: str) -> _Parsed:
    # A title may hold "::" itself, an id and a list of genres cannot.
    item_id, mark, rest = text.partition("::")
    title, second_mark, genres = rest.rpartition("::")
    return (item_id, title, "", genres) if mark and second_mark else _no_movie(ML_1M)


def _parse_movies_csv(text: str, header: list[str]) -> _Parsed:
    row = dict(zip(header, fields := split_csv(text), strict=False))
    return (row["movieid"], row["title"], "", row["genres"]) if len(fields) == len(header) else _no_movie(ML_LATEST)


def _no_movie(layout: str) -> str:
    return f"broken line: not a movie as the {layout} layout writes it"


def _movie_parser(layout: Layout) -> Callable[[str], _Parsed]:
    """Of a line: id, title, release date or "", genres."""
    if layout.name == ML_1M:
        return _parse_dat
    if layout.name == ML_LATEST:
        header = _header(layout.movies)
        _need_columns(layout.movies, header, ["movieId", "title", "genres"])
        return partial(_parse_movies_csv, header=header)
    genre_file = layout.folder / "u.genre"
    listed = [decoded(raw).partition("|")[0] for _, raw in _lines(genre_file)] if genre_file.is_file() else []
    return partial(_parse_item, genres=listed or _GENRES_100K.split("|"))


def read_movies(layout: Layout, bad: BadRows) -> pd.DataFrame:
    """item_id, title, year, genres."""
    rows = _table(layout.movies, _movie_parser(layout), "movie", bad, skip_header=layout.name == ML_LATEST)
    genres = [[g for part in names.split("|") if (g := part.strip()) not in _NO_GENRE] for _, _, names in rows.values()]
    years = [year_of(title) or year_of(f"({date.strip()[-4:]})") for title, date, _ in rows.values()]
    return pd.DataFrame(
        {
            ITEM_ID: np.array(list(rows), dtype=np.int64),
            TITLE: pd.Series([title.strip() for title, _, _ in rows.values()], dtype=object),
            YEAR: pd.array(years, dtype="Int32"),
            GENRES: pd.Series(genres, dtype=object),
        }
    )


def _parse_user(text: str, layout: str) -> _Parsed:
    """id, gender, age, occupation; an empty one is unknown, not bad."""
    fields = [part.strip() for part in text.split("|" if layout == ML_100K else "::")]
    if len(fields) != 5:
        return f"broken line: {len(fields)} fields instead of 5"
    user, gender, age, occupation, _ = fields
    if layout == ML_100K:
        age, gender = gender, age
    if gender not in ("F", "M", ""):
        return f"bad gender: {gender!r} is neither F nor M"
    if age and not (age.isdecimal() and age.isascii() and 0 < int(age) <= 150):
        return f"bad age: {age!r} is no number of years"
    if layout == ML_1M and occupation:
        names = _OCCUPATIONS_1M.split("|")
        if occupation not in map(str, range(len(names))):
            return f"bad occupation: {occupation!r} is no code from 0 to {len(names) - 1}"
        occupation = names[int(occupation)]
    return user, gender, age, occupation.lower()


def read_users(layout: Layout, bad: BadRows) -> pd.DataFrame:
    """user_id, gender, age, occupation of the users file; no rows where there is none."""
    rows = _table(layout.users, partial(_parse_user, layout=layout.name), "user", bad) if layout.users else {}
    return pd.DataFrame(
        {
            USER_ID: np.array(list(rows), dtype=np.int64),
            GENDER: pd.Series([gender or None for gender, _, _ in rows.values()], dtype=object),
            AGE: pd.array([int(age) if age else None for _, age, _ in rows.values()], dtype="Int32"),
            OCCUPATION: pd.Series([occupation or None for _, _, occupation in rows.values()], dtype=object),
        }
    )
