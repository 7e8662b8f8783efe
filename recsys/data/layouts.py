"""The three official MovieLens layouts: which one a folder has, and how its files are read.

Rows that make no sense go to `BadRows`. The checks of ratings are in `validate`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from recsys.columns import AGE, GENDER, GENRES, ITEM_ID, OCCUPATION, RATING, TIMESTAMP, TITLE, USER_ID, YEAR
from recsys.data.validate import BOM, BadRows, RatingsFormat, decoded, id_fault, read_ratings, split_csv
from recsys.errors import DataError

ML_100K: Final = "ml-100k"  # tab-separated ratings; movies and users with "|", one 0/1 field a genre
ML_1M: Final = "ml-1m"  # "::" everywhere; ml-10m too
ML_LATEST: Final = "ml-latest"  # CSV with a header; ml-20m, ml-25m, ml-32m, ml-latest-small too

SYNTHETIC_MARK: Final = "SYNTHETIC.json"  # `recsys.data.synthetic` puts it beside the files it makes

# Files of each layout: ratings, movies, and the ones that may be missing (users first).
_FILES: Final = {
    ML_100K: ("u.data", "u.item", ("u.user", "u.genre")),
    ML_1M: ("ratings.dat", "movies.dat", ("users.dat",)),
    ML_LATEST: ("ratings.csv", "movies.csv", ()),
}
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
    """One data set on disk: the name of its layout, its folder, and whether it is of our own making."""

    name: str
    folder: Path
    synthetic: bool

    @property
    def ratings(self) -> Path:
        return self.folder / _FILES[self.name][0]

    @property
    def movies(self) -> Path:
        return self.folder / _FILES[self.name][1]

    @property
    def others(self) -> list[Path]:
        """Those of the other files that this copy has."""
        return [path for name in _FILES[self.name][2] if (path := self.folder / name).is_file()]

    @property
    def files(self) -> list[Path]:
        return [self.ratings, self.movies, *self.others]


def find_layout(folder: Path) -> Layout:
    """The data set in `folder`, or in the one folder below it, as the official archives have it.

    DataError when there is none, a required file is missing, or there are several to choose from.
    """
    if not folder.is_dir():
        hint = " Give an archive with --archive." if folder.suffix == ".zip" else ""
        raise DataError(f"{folder} is no folder.{hint}" if folder.exists() else f"{folder} does not exist.")
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    incomplete = []
    for level in ([folder], below):
        layouts = []
        for place in level:
            for name, (ratings, movies, _) in _FILES.items():
                missing = [file for file in (ratings, movies) if not (place / file).is_file()]
                if not missing:
                    synthetic = any((where / SYNTHETIC_MARK).is_file() for where in (place, folder))
                    layouts.append(Layout(name, place, synthetic))
                elif len(missing) == 1:
                    incomplete.append(
                        f"{missing[0]} is missing in {place}: the {name} layout needs {ratings}, {movies}"
                    )
        if len(layouts) > 1:
            several = ", ".join(f"{layout.ratings.relative_to(folder)}" for layout in layouts)
            raise DataError(f"{folder} holds several data sets ({several}). Name a folder that holds one.")
        if layouts:
            return layouts[0]
    nothing = f"{folder} holds no MovieLens data, neither itself nor one folder down"
    raise DataError(f"{incomplete[0] if incomplete else nothing}. Layouts understood: {UNDERSTOOD}.")


def year_of(title: str) -> int | None:
    """Year of release from the end of a title; of a span, the first."""
    match = _YEAR.search(title)
    year = int(match[1]) if match else 0
    return year if _FIRST_YEAR <= year <= _LAST_YEAR else None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes without line end and byte-order mark); blank lines at the end are no rows."""
    text = path.read_bytes().removeprefix(BOM).rstrip(b"\r\n \t")
    for number, raw in enumerate(text.split(b"\n") if text else (), 1):
        yield number, raw.rstrip(b"\r").removeprefix(BOM)


def _encoding_of(path: Path) -> str:
    """ "utf-8", "cp1252" or "latin-1"; the whole file decides. Raises DataError for UTF-16.

    Official files are Latin-1 or UTF-8; people save them again as UTF-8, or as Windows' CP-1252. A file with one line
    of good UTF-8 beyond ASCII is UTF-8, and its other lines have to be too.
    """
    raw = path.read_bytes().replace(BOM, b"")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16 text. Save it as UTF-8.")
    if raw.isascii() or any(_is(line, "utf-8") for line in raw.split(b"\n") if not line.isascii()):
        return "utf-8"
    return "cp1252" if re.search(rb"[\x80-\x9f]", raw) and _is(raw, "cp1252") else "latin-1"


def _is(raw: bytes, encoding: str) -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _header(path: Path, needed: Sequence[str]) -> list[str]:
    """The names in line 1, in lower case; none in an empty file. DataError where a needed one is not there once."""
    with path.open("rb") as handle:
        header = [name.strip().lower() for name in split_csv(decoded(handle.readline().removeprefix(BOM)))]
    missing = [name for name in needed if header.count(name.lower()) != 1]
    if missing and path.stat().st_size:
        raise DataError(
            f"{path}: line 1 must name the columns {','.join(needed)}; it does not name {', '.join(missing)} once."
        )
    return header


def read_events(layout: Layout, movie_ids: pd.Series, bad: BadRows, *, now: float) -> pd.DataFrame:
    """user_id, item_id, rating, timestamp of the good rows, in the order of the file; one after `now` is bad."""
    fmt = RatingsFormat(_PLAIN, "\t" if layout.name == ML_100K else "::")
    if layout.name == ML_LATEST:
        header = _header(layout.ratings, ["userId", "movieId", "rating", "timestamp"])
        fmt = RatingsFormat(tuple(_CSV_NAMES.get(name, "") for name in header), ",")
    return read_ratings(layout.ratings, fmt, movie_ids.to_numpy(np.int64), layout.movies.name, bad, now=now)


# How a line reads: the id and the other fields as text, or, of a bad line, what is wrong with it.
_Parsed = tuple[str, ...] | str


def _table(
    path: Path, parse: Callable[[str], _Parsed], of: str, bad: BadRows, header_lines: int = 0
) -> dict[int, Sequence[str]]:
    """The other fields of each good line by id; of two lines with one id the first stays."""
    encoding = _encoding_of(path)
    rows: dict[int, Sequence[str]] = {}
    for line, raw in _lines(path):
        if line <= header_lines:
            continue
        try:
            parsed = parse(raw.decode(encoding))
        except UnicodeDecodeError:
            parsed = "broken line: not UTF-8 text, as other lines are"
        fault = parsed if isinstance(parsed, str) else id_fault(parsed[0].strip(), of)
        if not fault and int(parsed[0]) in rows:
            fault = f"duplicate: {of} {int(parsed[0])} has a line already"
        if fault:
            bad.add(path.name, line, fault, raw.decode(encoding, errors="backslashreplace"))
        else:
            rows[int(parsed[0])] = parsed[1:]
    return rows


def _movie_parser(layout: Layout) -> Callable[[str], _Parsed]:
    """Of a line: id, title, release date or "", genres."""
    fault = f"broken line: not a movie as the {layout.name} layout writes it"

    def item(text: str) -> _Parsed:
        fields = text.split("|")
        flags = fields[5:]
        if len(flags) != len(genres) or not set(flags) <= {"0", "1"}:
            return fault
        names = "|".join(name for name, flag in zip(genres, flags, strict=True) if flag == "1")
        return fields[0], fields[1], fields[2], names

    def dat(text: str) -> _Parsed:
        # A title may hold "::" itself, an id and a list of genres cannot.
        match = re.fullmatch(r"(.*?)::(.*)::(.*)", text)
        return (match[1], match[2], "", match[3]) if match else fault

    def movies_csv(text: str) -> _Parsed:
        fields = split_csv(text)
        row = dict(zip(header, fields, strict=False))
        return (row["movieid"], row["title"], "", row["genres"]) if len(fields) == len(header) else fault

    if layout.name == ML_1M:
        return dat
    if layout.name == ML_LATEST:
        header = _header(layout.movies, ["movieId", "title", "genres"])
        return movies_csv
    listed = [decoded(raw) for path in layout.others if path.name == "u.genre" for _, raw in _lines(path)]
    genres = [line.partition("|")[0] for line in listed] or _GENRES_100K.split("|")
    return item


def read_movies(layout: Layout, bad: BadRows) -> pd.DataFrame:
    """item_id, title, year, genres."""
    rows = _table(layout.movies, _movie_parser(layout), "movie", bad, header_lines=int(layout.name == ML_LATEST))
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


def read_users(layout: Layout, bad: BadRows) -> pd.DataFrame:
    """user_id, gender, age, occupation of the users file; no rows where there is none. An empty field is unknown."""

    def user(text: str) -> _Parsed:
        fields = [part.strip() for part in text.split("|" if layout.name == ML_100K else "::")]
        if len(fields) != 5:
            return f"broken line: {len(fields)} fields instead of 5"
        user_id, gender, age, occupation, _ = fields
        if layout.name == ML_100K:
            age, gender = gender, age
        if gender not in ("F", "M", ""):
            return f"bad gender: {gender!r} is neither F nor M"
        if age and not (re.fullmatch("[0-9]{1,3}", age) and 0 < int(age) <= 150):
            return f"bad age: {age!r} is no number of years"
        if layout.name == ML_1M and occupation:
            occupations = dict(zip(map(str, range(21)), _OCCUPATIONS_1M.split("|"), strict=True))
            if occupation not in occupations:
                return f"bad occupation: {occupation!r} is no code from 0 to 20"
            occupation = occupations[occupation]
        return user_id, gender, age, occupation.lower()

    files = [path for path in layout.others if path.name != "u.genre"]
    rows = _table(files[0], user, "user", bad) if files else {}
    return pd.DataFrame(
        {
            USER_ID: np.array(list(rows), dtype=np.int64),
            GENDER: pd.Series([gender or None for gender, _, _ in rows.values()], dtype=object),
            AGE: pd.array([int(age) if age else None for _, age, _ in rows.values()], dtype="Int32"),
            OCCUPATION: pd.Series([occupation or None for _, _, occupation in rows.values()], dtype=object),
        }
    )
