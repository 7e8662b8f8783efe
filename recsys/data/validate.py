"""Ratings read block by block and checked; every bad row has its file, line number and reason.

One pattern says how a good line is written, for a whole block at once. Only lines that fail are looked at one by one.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys.arrays import IntArray
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.limits import HIGHEST_RATING, LARGEST_ID, LOWEST_RATING, RATING_STEP, latest_time, likely_unit

SHOWN: Final = 10  # bad rows that an error message lists
BLOCK_BYTES: Final = 16 << 20
BOM: Final = b"\xef\xbb\xbf"  # what some editors put at the start of UTF-8; inside, where files were joined
_WHOLE: Final = re.compile(r"[0-9]{1,19}")
_DIGITS: Final = "[0-9]{1,18}"  # what surely fits into 64 bits
_WRITTEN: Final = {USER_ID: _DIGITS, ITEM_ID: _DIGITS, RATING: r"[0-9](?:\.[0-9]+)?", TIMESTAMP: _DIGITS}
_TYPES: Final = {USER_ID: "int64", ITEM_ID: "int64", RATING: "float32", TIMESTAMP: "int64"}
_LINE: Final = "line"


@dataclass
class BadRows:
    """Counts bad rows of all files by kind, and keeps the first few. With `quarantine` (an open text file) each is
    written there as CSV. A reason starts with its kind and a colon ("unknown movie: ...")."""

    quarantine: TextIO | None = None
    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._write(["file", "line", "reason", "text"])

    def _write(self, row: list[object]) -> None:
        if self.quarantine:
            csv.writer(self.quarantine).writerow(row)

    def add(self, file: str, line: int, reason: str, text: str) -> None:
        """`line` counts from 1 and includes a header; `text` is the line as it stands in the file."""
        self.count += 1
        self.kinds[reason.partition(":")[0]] += 1
        if self.count <= SHOWN:
            self.first.append(f"  {file} line {line}: {reason}")
        self._write([file, line, reason, text])

    def summary(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common())
        return f"{self.count} bad row{'s' if self.count != 1 else ''} ({kinds})"

    def raise_if_any(self, folder: Path) -> None:
        if self.count:
            more = [f"  and {self.count - SHOWN} more"] if self.count > SHOWN else []
            advice = (
                "Correct the files, or run again with --skip-bad-rows to leave these rows out; "
                "quarantine.csv then lists every one of them."
            )
            raise DataError("\n".join([f"{folder} has {self.summary()}:", *self.first, *more, advice]))


@dataclass(frozen=True)
class RatingsFormat:
    """The names of the fields in order and what stands between them; fields that are no rating's are read over.

    With a comma it is CSV: the first line is a header, and a field may stand in double quotes.
    """

    columns: tuple[str, ...]
    separator: str

    @property
    def is_csv(self) -> bool:
        return self.separator == ","

    @property
    def good_line(self) -> str:
        """A pattern whose groups are the four fields, spaces and quotes around them allowed."""
        fields = []
        for name in self.columns:
            written = _WRITTEN.get(name)
            if written is None:
                fields.append(r'(?:"(?:[^"]|"")*"|[^",\r\n]*)')
            else:
                fields.append(f' *(?P<{name}>{written}|"{written}") *' if self.is_csv else f" *(?P<{name}>{written}) *")
        return "^" + self.separator.join(fields) + r"\r?\n$"

    def fields(self, line: str) -> list[str]:
        """User, movie, rating and timestamp as text; where the number of fields is another, all of them."""
        parts = split_csv(line) if self.is_csv else line.split(self.separator)
        if len(parts) != len(self.columns):
            return parts
        return [parts[self.columns.index(name)].strip() for name in _WRITTEN]


def split_csv(text: str) -> list[str]:
    """The fields of one CSV line; an unclosed or misplaced quote gives no fields at all, hence a broken line."""
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error:
        return []


def id_fault(text: str, of: str) -> str | None:
    """Why a text is no id, or None."""
    if not _WHOLE.fullmatch(text) or int(text) > LARGEST_ID:
        return f"bad {of} id: {text!r} is not a whole number from 0 to {LARGEST_ID} (2^53 - 1)"
    return None


def _time_fault(text: str, now: float) -> str | None:
    if not _WHOLE.fullmatch(text):
        return f"bad timestamp: {text!r} is not a whole number of seconds since 1970"
    if int(text) <= latest_time(now):
        return None
    unit = likely_unit(int(text), now)
    hint = f"as {unit} it would be in the past" if unit else "perhaps another epoch or unit"
    return f"future timestamp: {text} seconds since 1970 are yet to come; {hint}"


def _rating_fault(text: str) -> str | None:
    if not re.fullmatch(_WRITTEN[RATING], text) or not _is_rating(float(text)):
        return f"bad rating: {text!r} is not one of 0.5, 1.0, 1.5 and so on to 5.0"
    return None


def _is_rating(stars: Any) -> Any:
    """Of one number or of an array."""
    return (stars >= LOWEST_RATING) & (stars <= HIGHEST_RATING) & (stars % RATING_STEP == 0)


def decoded(raw: bytes) -> str:
    """A line as a person may read it, whatever its bytes are, without its line end."""
    return raw.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")


def _blocks(path: Path, skip_lines: int) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines) until the end; blank lines at the very end of the file are no rows."""
    size = path.stat().st_size
    line = skip_lines + 1
    with path.open("rb") as handle:
        for _ in range(skip_lines):
            handle.readline()
        while block := handle.read(BLOCK_BYTES):
            block += handle.readline()
            if BOM in block:
                block = block.removeprefix(BOM).replace(b"\n" + BOM, b"\n")
            if handle.tell() >= size:
                block = block.rstrip(b"\r\n \t") + b"\n"
            if block.strip():
                yield line, block
                line += block.count(b"\n")


def read_ratings(
    path: Path, fmt: RatingsFormat, movie_ids: IntArray, movies_file: str, bad: BadRows, *, now: float
) -> pd.DataFrame:
    """The good rows of a ratings file in its order: user_id, item_id, rating (float32), timestamp.

    Bad rows go to `bad`, duplicates last; duplicates are looked for among rows that are good otherwise. A file
    without rows gives an empty frame.
    """

    def fault(line: str) -> str:
        fields = fmt.fields(line)
        if len(fields) != len(_WRITTEN):
            return f"broken line: {len(fields)} fields instead of {len(fmt.columns)}"
        user, item, rating, timestamp = fields
        return (
            id_fault(user, "user")
            or id_fault(item, "movie")
            or _rating_fault(rating)
            or _time_fault(timestamp, now)
            or (f"unknown movie: {item} is not in {movies_file}" if int(item) not in movies else None)
            or "broken line: not written as a rating of this layout is"
        )

    movies = set(movie_ids.tolist())
    pattern, parts = fmt.good_line, []
    for first_line, block in _blocks(path, int(fmt.is_csv)):
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
        offsets = pa.py_buffer(np.append(0, ends).astype(np.int32))
        lines = pa.Array.from_buffers(pa.binary(), len(ends), [None, offsets, pa.py_buffer(block)])
        groups = pc.extract_regex(lines, pattern)
        numbers = np.arange(first_line, first_line + len(lines))
        written = np.asarray(groups.is_valid())
        groups = groups.drop_null()
        columns = {
            name: pc.ascii_trim(groups.field(name).cast(pa.string()), '"').cast(kind).to_numpy(zero_copy_only=False)
            for name, kind in {**_TYPES, RATING: "float64"}.items()  # checked as written, then rounded
        }
        good = _is_rating(columns[RATING]) & np.isin(columns[ITEM_ID], movie_ids) & (columns[USER_ID] <= LARGEST_ID)
        good &= (columns[ITEM_ID] <= LARGEST_ID) & (columns[TIMESTAMP] <= latest_time(now))
        parts.append(pd.DataFrame({**columns, _LINE: numbers[written]})[good].astype(_TYPES))
        written[written] = good
        for row in np.flatnonzero(~written):
            text = decoded(lines[row].as_py())
            bad.add(path.name, int(numbers[row]), fault(text), text)
    nothing = pd.DataFrame(columns=[*_TYPES, _LINE], dtype="int64").astype(_TYPES)
    return _without_duplicates(pd.concat(parts, ignore_index=True) if parts else nothing, path, bad)


def _without_duplicates(frame: pd.DataFrame, path: Path, bad: BadRows) -> pd.DataFrame:
    """The first rating of a movie by a user, in the order of the file, stays."""
    pair = [USER_ID, ITEM_ID]
    repeated = frame.duplicated(pair)
    if repeated.any():
        both = frame[repeated].merge(frame[~repeated], on=pair, suffixes=("", "_first"))
        reasons = {
            row.line: f"duplicate: user {row.user_id} rated movie {row.item_id} on line {row.line_first} already"
            for row in both.itertuples()
        }
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, 1):
                if number in reasons:
                    bad.add(path.name, number, reasons[number], decoded(raw))
        frame = frame[~repeated]
    return frame.drop(columns=_LINE)
