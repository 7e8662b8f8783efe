"""Ratings read block by block and checked; every bad row has its file, line number and reason.

Stage: data. In: a ratings file and the movie ids that exist. Out: typed columns of the good rows; the bad ones in a
`BadRows`, which raises at the end or writes `quarantine.csv`. Absent: which file has which format (`layouts`).

Speed and memory: Arrow parses a block of whole lines straight to numbers, and NumPy checks it. Only a block that Arrow
refuses is taken apart line by line, and `rating_fault`, the definition of a good row, is asked about suspects only.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from recsys.arrays import BoolArray, IntArray
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.limits import HIGHEST_RATING, LARGEST_ID, LOWEST_RATING, RATING_STEP, latest_time, likely_unit

SHOWN: Final = 10  # bad rows that an error message lists
_KEPT: Final = 1000  # rows held while looking for the first SHOWN of them
_BLOCK_BYTES: Final = 16 << 20
BOM: Final = b"\xef\xbb\xbf"  # what some editors put at the start of UTF-8; inside, where files were joined
_WHOLE: Final = re.compile(r"[0-9]{1,19}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass
class BadRows:
    """Collects bad rows of all files. With `quarantine` (an open text file) each is written there as CSV.

    Only a bounded number is held in memory, so that a file where every row is bad costs no more than a good one.
    A reason starts with its kind and a colon ("unknown movie: ..."); kinds are counted.
    """

    quarantine: TextIO | None = None
    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    _first: list[tuple[int, int, str, str]] = field(default_factory=list)  # file number, line, file, reason
    _files: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._writer = csv.writer(self.quarantine) if self.quarantine else None
        if self._writer:
            self._writer.writerow(["file", "line", "reason", "text"])

    def add(self, file: str, line: int, reason: str, text: str) -> None:
        """`line` counts from 1 and includes a header; `text` is the line as it stands in the file."""
        self.count += 1
        self.kinds[reason.partition(":")[0]] += 1
        self._first.append((self._files.setdefault(file, len(self._files)), line, file, reason))
        if len(self._first) > _KEPT:
            self._first = sorted(self._first)[:SHOWN]
        if self._writer:
            self._writer.writerow([file, line, reason, text])

    def summary(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.most_common())
        return f"{self.count} bad row{'s' if self.count != 1 else ''} ({kinds})"

    def raise_if_any(self, folder: Path) -> None:
        """DataError that names the first bad rows, in the order of the files."""
        if not self.count:
            return
        first = sorted(self._first)[:SHOWN]
        lines = [f"  {file} line {line}: {reason}" for _, line, file, reason in first]
        if self.count > len(first):
            lines.append(f"  and {self.count - len(first)} more")
        raise DataError(
            f"{folder} has {self.summary()}:\n"
            + "\n".join(lines)
            + "\nCorrect the files, or run again with --skip-bad-rows to leave these rows out; "
            "quarantine.csv then lists every one of them."
        )


@dataclass(frozen=True)
class RatingsFormat:
    """How one layout writes a rating: the names of its fields in order, and what stands between them.

    `columns` names four fields USER_ID, ITEM_ID, RATING and TIMESTAMP; others are read over.
    """

    columns: tuple[str, ...]
    separator: str
    quoted: bool  # fields may stand in double quotes, as CSV has it
    header: bool


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


def time_fault(text: str, now: float) -> str | None:
    """Why a text is no moment of the past, or None."""
    if not _WHOLE.fullmatch(text):
        return f"bad timestamp: {text!r} is not a whole number of seconds since 1970"
    if int(text) <= latest_time(now):
        return None
    unit = likely_unit(int(text), now)
    hint = f"as {unit} it would be in the past" if unit else "perhaps another epoch or unit"
    return f"future timestamp: {text} seconds since 1970 are yet to come; {hint}"


def decoded(raw: bytes) -> str:
    """A line as a person may read it, whatever its bytes are, without its line end."""
    return raw.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")


def rating_fault(
    fields: list[str], n_fields: int, movie_known: Callable[[int], bool], movies_file: str, now: float
) -> str | None:
    """Why a row (user, movie, rating, timestamp as text) is bad, or None. The definition that the fast path follows."""
    if len(fields) != n_fields:
        return f"broken line: {len(fields)} fields instead of {n_fields}"
    user, item, rating, timestamp = fields[:4]
    if fault := id_fault(user, "user") or id_fault(item, "movie"):
        return fault
    if not _NUMBER.fullmatch(rating):
        return f"bad rating: {rating!r} is not a number"
    if not LOWEST_RATING <= float(rating) <= HIGHEST_RATING or float(rating) % RATING_STEP:
        return f"bad rating: {rating} is not one of 0.5, 1.0, 1.5 and so on to 5.0"
    if fault := time_fault(timestamp, now):
        return fault
    if not movie_known(int(item)):
        return f"unknown movie: {item} is not in {movies_file}"
    return None


def _blocks(path: Path, skip_lines: int) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines) until the end; blank lines at the very end of the file are no rows."""
    size = path.stat().st_size
    line = skip_lines + 1
    with path.open("rb") as handle:
        for _ in range(skip_lines):
            handle.readline()
        while block := handle.read(_BLOCK_BYTES):
            block += handle.readline()
            if BOM in block:
                block = block.removeprefix(BOM).replace(b"\n" + BOM, b"\n")
            if handle.tell() >= size:
                block = block.rstrip(b"\r\n \t")
            if block:
                block = block if block.endswith(b"\n") else block + b"\n"
                yield line, block
                line += block.count(b"\n")


@dataclass
class _Reader:
    path: Path
    format: RatingsFormat
    movie_ids: IntArray  # sorted
    movies_file: str
    bad: BadRows
    now: float

    def __post_init__(self) -> None:
        columns, separator = self.format.columns, self.format.separator
        wanted = {USER_ID: pa.int64(), ITEM_ID: pa.int64(), RATING: pa.float64(), TIMESTAMP: pa.int64()}
        self.order = [columns.index(name) for name in wanted] + [
            i for i, name in enumerate(columns) if name not in wanted
        ]
        self.separator_byte = separator if len(separator) == 1 else "\x01"
        # An empty field and a blank line must be refused here, so that the line-by-line path names them.
        self.options: dict[str, Any] = {
            "read_options": arrow_csv.ReadOptions(column_names=list(columns)),
            "parse_options": arrow_csv.ParseOptions(
                delimiter=self.separator_byte, quote_char='"' if self.format.quoted else False, ignore_empty_lines=False
            ),
            "convert_options": arrow_csv.ConvertOptions(
                column_types={name: wanted.get(name, pa.binary()) for name in columns},
                include_columns=list(wanted),
                null_values=[],
                quoted_strings_can_be_null=False,
            ),
        }

    def known(self, item_ids: IntArray) -> BoolArray:
        if not len(self.movie_ids):
            return np.zeros(len(item_ids), dtype=bool)
        at = np.searchsorted(self.movie_ids, item_ids)
        return np.equal(self.movie_ids[np.minimum(at, len(self.movie_ids) - 1)], item_ids)

    def fault(self, raw: bytes) -> tuple[str | None, list[str]]:
        text = decoded(raw)
        parts = split_csv(text) if self.format.quoted else text.split(self.format.separator)
        # Spaces around a field are no fault: Arrow reads over them too.
        fields = [parts[i].strip(" \t") for i in self.order] if len(parts) == len(self.order) else parts
        reason = rating_fault(
            fields, len(self.order), lambda item: bool(self.known(np.array([item]))[0]), self.movies_file, self.now
        )
        return reason, fields

    def fast(self, block: bytes) -> list[npt.NDArray[Any]] | None:
        """Four columns, a row for each line; None where a line is not four plain decimal numbers."""
        if b"x" in block or b"X" in block:  # Arrow would take 0x1F for 31
            return None
        if len(self.format.separator) > 1:
            block = block.replace(self.format.separator.encode(), self.separator_byte.encode())
        try:
            table = arrow_csv.read_csv(pa.BufferReader(block), **self.options)
        except (pa.ArrowInvalid, pa.ArrowKeyError):
            return None
        if table.num_rows != block.count(b"\n"):  # a stray quote or carriage return joined or split lines
            return None
        return [column.to_numpy() for column in table.columns]

    def slow(self, first_line: int, raw_lines: list[bytes]) -> list[npt.NDArray[Any]]:
        rows: list[tuple[int, int, float, int, int]] = []
        for line, raw in enumerate(raw_lines, first_line):
            reason, fields = self.fault(raw)
            if reason is None:
                rows.append((int(fields[0]), int(fields[1]), float(fields[2]), int(fields[3]), line))
            else:
                self.bad.add(self.path.name, line, reason, decoded(raw))
        kinds = (np.int64, np.int64, np.float32, np.int64, np.int64)
        return [np.array([row[i] for row in rows], dtype=kind) for i, kind in enumerate(kinds)]

    def block(self, first_line: int, block: bytes) -> list[npt.NDArray[Any]]:
        """user, movie, rating, timestamp and line number of the good rows; the bad ones go to `bad`."""
        columns = self.fast(block)
        if columns is None:
            return self.slow(first_line, block.split(b"\n")[:-1])
        user, item, rating, timestamp = columns
        steps = rating / RATING_STEP
        good = (rating >= LOWEST_RATING) & (rating <= HIGHEST_RATING) & (steps == np.floor(steps)) & self.known(item)
        for column, largest in ((user, LARGEST_ID), (item, LARGEST_ID), (timestamp, latest_time(self.now))):
            good &= (column >= 0) & (column <= largest)
        line = np.arange(first_line, first_line + len(user))
        if not good.all():
            raw_lines = block.split(b"\n")
            for row in np.flatnonzero(~good).tolist():
                reason, _ = self.fault(raw_lines[row])
                # No reason would mean that the two definitions differ; the tests compare them.
                self.bad.add(self.path.name, first_line + row, reason or "bad row: ?", decoded(raw_lines[row]))
        return [column[good] for column in (user, item, rating.astype(np.float32), timestamp, line)]


def _drop_duplicates(columns: list[npt.NDArray[Any]], path: Path, bad: BadRows) -> list[npt.NDArray[Any]]:
    """Keep the first rating of a movie by a user, in the order of the file."""
    user, item, line = columns[0], columns[1], columns[4]
    user_code = pd.factorize(user)[0].astype(np.int64)
    item_code, items = pd.factorize(item)
    key = user_code * len(items) + item_code
    del user_code, item_code
    ordered = np.sort(key)
    if not (ordered[1:] == ordered[:-1]).any():
        return columns
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]]
    first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]  # of the same pair, by position
    doubles, firsts = order[~starts], first[~starts]
    by_line = np.argsort(doubles)
    wanted = iter(zip(doubles[by_line].tolist(), firsts[by_line].tolist(), strict=True))
    double, original = next(wanted)
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            if number < line[double]:
                continue
            reason = f"duplicate: user {user[double]} rated movie {item[double]} on line {line[original]} already"
            bad.add(path.name, number, reason, decoded(raw))
            double, original = next(wanted, (-1, -1))
            if double < 0:
                break
    keep = np.ones(len(user), dtype=bool)
    keep[doubles] = False
    return [column[keep] for column in columns]


def read_ratings(
    path: Path, fmt: RatingsFormat, movie_ids: IntArray, movies_file: str, bad: BadRows, *, now: float
) -> pd.DataFrame:
    """The good rows of a ratings file in its order: user_id, item_id, rating (float32), timestamp.

    Bad rows go to `bad`, duplicates last. A file without rows gives an empty frame. About 28 bytes a row are held,
    and 8 more for its line number; duplicates are looked for among rows that are good otherwise.
    """
    reader = _Reader(path, fmt, np.sort(movie_ids), movies_file, bad, now)
    parts = [reader.block(line, block) for line, block in _blocks(path, int(fmt.header))]
    columns: list[npt.NDArray[Any]] = []
    for i, kind in enumerate((np.int64, np.int64, np.float32, np.int64, np.int64)):
        columns.append(np.concatenate([part[i] for part in parts]) if parts else np.empty(0, kind))
        for part in parts:
            part[i] = np.empty(0)  # let go of it: the parts together are as large as the whole
    if len(columns[0]):
        columns = _drop_duplicates(columns, path, bad)
    return pd.DataFrame(dict(zip((USER_ID, ITEM_ID, RATING, TIMESTAMP), columns[:4], strict=True)), copy=False)
