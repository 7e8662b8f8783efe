"""The items as arrays, and the only map between raw ids and dense row numbers. A catalogue is saved in every bundle.

What changes with time is elsewhere: daily statistics in `item_stats`, a user's history in `state`.

Shapes: N items in the order of their ids, G genres, W title words in the vocabulary.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsys.arrays import DoubleArray, FloatArray, IntArray
from recsys.atomic_io import read_json, write_json
from recsys.columns import GENRES, ITEM_ID, OCCUPATION, TITLE, YEAR

MAX_TITLE_WORDS = 6  # words kept a title
MIN_WORD_ITEMS = 3  # a word in fewer titles than this tells nothing that the id does not

# Lower ends of the age brackets; index 0 is "unknown". The brackets are those of ml-1m.
AGE_BRACKETS = (0, 18, 25, 35, 45, 50, 56)
GENDERS = ("", "F", "M")


def title_words(title: str) -> list[str]:
    """Lower-case words of a title without the year in parentheses, in order, at most MAX_TITLE_WORDS.

    >>> title_words("Die Hard: With a Vengeance (1995)")
    ['die', 'hard', 'with', 'a', 'vengeance']
    """
    return re.findall(r"[^\W_]+", re.sub(r"\(\d{4}\)\s*$", "", title).lower())[:MAX_TITLE_WORDS]


def positions_of(ids: IntArray, wanted: npt.ArrayLike) -> IntArray:
    """Where each wanted id stands among ascending `ids`, in the shape of `wanted`; -1 for one that is not there."""
    wanted = np.asarray(wanted, dtype=np.int64)
    if len(ids) == 0:
        return np.full(wanted.shape, -1, dtype=np.int64)
    position = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[position] == wanted, position, -1)


@dataclass(frozen=True)
class Catalogue:
    """All items of a data set, rated or not."""

    item_ids: IntArray  # (N,) ascending
    titles: tuple[str, ...]  # N
    years: FloatArray  # (N,) NaN where unknown
    genres: FloatArray  # (N, G) 1.0 where the item has the genre
    genre_names: tuple[str, ...]  # G
    words: IntArray  # (N, MAX_TITLE_WORDS) into the vocabulary, 0 where there is none
    vocabulary: tuple[str, ...]  # W; position 0 is the empty word
    occupations: tuple[str, ...]  # of user profiles; position 0 is unknown

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_idx(self, item_ids: npt.ArrayLike) -> IntArray:
        """Row numbers of raw ids; -1 for an id that the catalogue does not hold."""
        return positions_of(self.item_ids, item_ids)

    def to_ids(self, item_idx: npt.NDArray[np.integer]) -> IntArray:
        """Raw ids of row numbers; -1 stays -1."""
        return np.where(item_idx >= 0, self.item_ids[item_idx], -1)

    @cached_property
    def decades(self) -> FloatArray:
        """(N,) year / 10, the median year where unknown: an item without a year is neither old nor new."""
        known = self.years[~np.isnan(self.years)]
        middle = float(np.median(known)) if len(known) else 2000.0
        return np.where(np.isnan(self.years), middle, self.years).astype(np.float32) / np.float32(10.0)

    @cached_property
    def known_decades(self) -> FloatArray:
        """(N,) year / 10, NaN where unknown."""
        return np.where(np.isnan(self.years), np.float32(np.nan), self.decades)

    @cached_property
    def mean_decade(self) -> np.float32:
        """Of all items; stands for the taste of somebody of whom nothing is known."""
        return np.float32(np.mean(self.decades))

    @cached_property
    def genre_counts(self) -> FloatArray:
        """(N,) genres of each item, at least 1: what a mean over them is divided by."""
        return np.asarray(np.maximum(self.genres.sum(axis=1), np.float32(1)))

    @property
    def profile_sizes(self) -> tuple[int, int, int]:
        """Number of values of (gender, age bracket, occupation)."""
        return len(GENDERS), len(AGE_BRACKETS) + 1, len(self.occupations)

    def encode_profiles(self, gender: Sequence[str], age: DoubleArray, occupation: Sequence[str]) -> IntArray:
        """(B, 3) indices of gender, age bracket and occupation. Empty text, age <= 0 or NaN, unseen labels give 0."""
        genders, occupations = ({label: i for i, label in enumerate(n)} for n in (GENDERS, self.occupations))
        out = np.empty((len(gender), 3), dtype=np.int64)
        out[:, 0] = [genders.get(label, 0) for label in gender]
        out[:, 1] = np.where(age > 0, np.searchsorted(AGE_BRACKETS, age, side="right"), 0)  # NaN is not above 0
        out[:, 2] = [occupations.get(label, 0) for label in occupation]
        return out

    def genres_of(self, item_idx: int) -> list[str]:
        return [self.genre_names[g] for g in np.flatnonzero(self.genres[item_idx])]

    @classmethod
    def from_tables(cls, items: pd.DataFrame, users: pd.DataFrame) -> "Catalogue":
        return cls._build(items.sort_values(ITEM_ID), ("", *sorted({o for o in users[OCCUPATION].dropna() if o})))

    @classmethod
    def _build(cls, items: pd.DataFrame, occupations: tuple[str, ...]) -> "Catalogue":
        genre_names = tuple(sorted({name for names in items[GENRES] for name in names}))
        column = {name: i for i, name in enumerate(genre_names)}
        genres = np.zeros((len(items), len(genre_names)), dtype=np.float32)
        for row, names in enumerate(items[GENRES]):
            genres[row, [column[name] for name in names]] = 1.0

        word_lists = [title_words(t) for t in items[TITLE]]
        counts = Counter(word for words in word_lists for word in set(words))
        vocabulary = ("", *sorted(w for w, n in counts.items() if n >= MIN_WORD_ITEMS))
        word_idx = {word: i for i, word in enumerate(vocabulary)}
        words = np.zeros((len(items), MAX_TITLE_WORDS), dtype=np.int64)
        for row, title in enumerate(word_lists):
            kept = [word_idx[w] for w in title if w in word_idx]
            words[row, : len(kept)] = kept
        return cls(
            item_ids=items[ITEM_ID].to_numpy(np.int64),
            titles=tuple(items[TITLE]),
            years=items[YEAR].to_numpy(np.float32, na_value=np.nan),
            genres=genres,
            genre_names=genre_names,
            words=words,
            vocabulary=vocabulary,
            occupations=occupations,
        )

    def save(self, folder: Path) -> None:
        """Write `catalogue.parquet` and `catalogue.json` into an existing folder."""
        genres = [self.genres_of(i) for i in range(len(self))]
        items = pd.DataFrame({ITEM_ID: self.item_ids, TITLE: self.titles, YEAR: self.years, GENRES: genres})
        items.to_parquet(folder / "catalogue.parquet", index=False)
        write_json(folder / "catalogue.json", {"occupations": self.occupations})

    @classmethod
    def load(cls, folder: Path) -> "Catalogue":
        """As it was saved: genres and words follow from the items."""
        items = pd.read_parquet(folder / "catalogue.parquet")
        return cls._build(items, tuple(read_json(folder / "catalogue.json")["occupations"]))
