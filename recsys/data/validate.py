"""Ratings read block by block and checked; every bad row has its file, line number and reason.

Arrow parses a block of whole lines straight to numbers, and NumPy checks it. `_Reader.fault`, the definition of a
good row, is asked line by line only where a row looks bad or Arrow refuses the block.
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
import pyarrow.csv as arrow_csv

from recsys.arrays import BoolArray, IntArray
from recsys.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.limits import HIGHEST_RATING, LARGEST_ID, LOWEST_RATING, RATING_STEP, latest_time, likely_unit

SHOWN: Final = 10  # bad rows that an error message lists
_BLOCK_BYTES: Final = 16 << 20
BOM: Final = b"\xef\xbb\xbf"  # what some editors put at the start of UTF-8; inside, where files were joined
_WHOLE: Final = re.compile(r"[0-9]{1,19}")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_PARSED: Final = {USER_ID: pa.int64(), ITEM_ID: pa.int64(), RATING: pa.float64(), TIMESTAMP: pa.int64()}
_LINE: Final = "line"
_ROWS: Final = pa.schema([*{**_PARSED, RATING: pa.float32(), _LINE: pa.int64()}.items()])


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


def _time_fault(text: str, now: float) -> str | None:
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
        others = [i for i, name in enumerate(columns) if name not in _PARSED]
        self.order = [*(columns.index(name) for name in _PARSED), *others]
        self.separator_byte = separator if len(separator) == 1 else "\x01"
        # An empty field and a blank line must be refused here, so that the line-by-line path names them.
        self.options: dict[str, Any] = {
            "read_options": arrow_csv.ReadOptions(column_names=list(columns)),
            "parse_options": arrow_csv.ParseOptions(
                delimiter=self.separator_byte, quote_char='"' if self.format.quoted else False, ignore_empty_lines=False
            ),
            "convert_options": arrow_csv.ConvertOptions(
                column_types={name: _PARSED.get(name, pa.binary()) for name in columns},
                include_columns=list(_PARSED),
                null_values=[],
                quoted_strings_can_be_null=False,
            ),
        }

    def parsed(self, block: bytes) -> pa.Table | None:
        """A row for each line; None where a line is not four plain decimal numbers."""
        if b"x" in block or b"X" in block:  # Arrow would take 0x1F for 31
            return None
        if len(self.format.separator) > 1:
            block = block.replace(self.format.separator.encode(), self.separator_byte.encode())
        try:
            table = arrow_csv.read_csv(pa.BufferReader(block), **self.options)
        except (pa.ArrowInvalid, pa.ArrowKeyError):
            return None
        return table if table.num_rows == block.count(b"\n") else None  # a stray quote or CR joins or splits lines

    def known(self, item_ids: IntArray) -> BoolArray:
        at = np.searchsorted(self.movie_ids, item_ids)  # a hash table for isin costs twice the memory
        padded = np.append(self.movie_ids, -1)
        return np.asarray(padded[at] == item_ids)

    def good(self, table: pa.Table) -> BoolArray:
        user, item, rating, timestamp = (column.to_numpy() for column in table.columns)
        steps = rating / RATING_STEP
        good = (rating >= LOWEST_RATING) & (rating <= HIGHEST_RATING) & (steps == np.floor(steps))
        good &= self.known(item)
        for column, largest in ((user, LARGEST_ID), (item, LARGEST_ID), (timestamp, latest_time(self.now))):
            good &= (column >= 0) & (column <= largest)
        return np.asarray(good, dtype=bool)

    def fault(self, fields: list[str]) -> str | None:
        """Why a row (user, movie, rating, timestamp as text) is bad, or None; `good` says the same of many."""
        if len(fields) != len(self.order):
            return f"broken line: {len(fields)} fields instead of {len(self.order)}"
        user, item, rating, timestamp = fields[:4]
        if fault := id_fault(user, "user") or id_fault(item, "movie"):
            return fault
        if not _NUMBER.fullmatch(rating):
            return f"bad rating: {rating!r} is not a number"
        if not LOWEST_RATING <= float(rating) <= HIGHEST_RATING or float(rating) % RATING_STEP:
            return f"bad rating: {rating} is not one of 0.5, 1.0, 1.5 and so on to 5.0"
        if fault := _time_fault(timestamp, self.now):
            return fault
        if not self.known(np.array([int(item)]))[0]:
            return f"unknown movie: {item} is not in {self.movies_file}"
        return None

    def block(self, first_line: int, block: bytes) -> pa.Table:
        """The good rows of whole lines, with the number of each line; the bad ones go to `bad`."""
        line = first_line + np.arange(block.count(b"\n"))
        table = self.parsed(block)
        if table is None:
            good, table = np.zeros(len(line), dtype=bool), _ROWS.empty_table()
        else:
            good = self.good(table)
            table = table.append_column(_LINE, pa.array(line)).cast(_ROWS)
            table = table if good.all() else table.filter(pa.array(good))
        suspects = np.flatnonzero(~good).tolist()
        lines = block.split(b"\n") if suspects else []
        rows: list[tuple[int, int, float, int, int]] = []  # good, and not as Arrow reads them
        for at in suspects:
            text = decoded(lines[at])
            parts = split_csv(text) if self.format.quoted else text.split(self.format.separator)
            # Spaces around a field are no fault: Arrow reads over them too.
            fields = [parts[i].strip(" \t") for i in self.order] if len(parts) == len(self.order) else parts
            reason = self.fault(fields)
            if reason is None:
                rows.append((int(fields[0]), int(fields[1]), float(fields[2]), int(fields[3]), int(line[at])))
            else:
                self.bad.add(self.path.name, int(line[at]), reason, text)
        slow = pa.table([list(column) for column in zip(*rows, strict=True)], schema=_ROWS) if rows else None
        return table if slow is None else pa.concat_tables([table, slow])


def _without_duplicates(frame: pd.DataFrame, path: Path, bad: BadRows) -> pd.DataFrame:
    """The first rating of a movie by a user, in the order of the file, stays."""
    pair = [USER_ID, ITEM_ID]
    items, names = pd.factorize(frame[ITEM_ID])
    items += pd.factorize(frame[USER_ID])[0] * len(names)
    items.sort()  # to ask pandas at once would take twice the memory
    if (items[1:] == items[:-1]).any():
        double = frame.duplicated(pair).to_numpy()
        both = frame[double].merge(frame[~double], on=pair, suffixes=("", "_first"))
        firsts = {row.line: row for row in both.itertuples()}
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, 1):
                if row := firsts.get(number):
                    reason = f"duplicate: user {row.user_id} rated movie {row.item_id} on line {row.line_first} already"
                    bad.add(path.name, number, reason, decoded(raw))
        frame = frame[~double].copy()
    frame.pop(_LINE)  # in place: a copy of the rest would take as much again
    return frame


def read_ratings(
    path: Path, fmt: RatingsFormat, movie_ids: IntArray, movies_file: str, bad: BadRows, *, now: float
) -> pd.DataFrame:
    """The good rows of a ratings file in its order: user_id, item_id, rating (float32), timestamp.

    Bad rows go to `bad`, duplicates last; duplicates are looked for among rows that are good otherwise. A file
    without rows gives an empty frame.
    """
    reader = _Reader(path, fmt, np.sort(movie_ids), movies_file, bad, now)
    parts = [reader.block(line, block) for line, block in _blocks(path, int(fmt.header))]
    table = pa.concat_tables([_ROWS.empty_table(), *parts])
    del parts
    return _without_duplicates(table.to_pandas(split_blocks=True, self_destruct=True), path, bad)
