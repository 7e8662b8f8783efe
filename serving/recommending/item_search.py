"""The search by title: every word counts, without accents and in any Unicode form."""

import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict

import numpy as np

from recsys.arrays import FloatArray, IntArray
from recsys.features.catalogue import Catalogue

LAST = "\U0010ffff"  # sorts after every word that begins as the text before it


def words_of(text: str) -> list[str]:
    """Words as they are compared: in compatibility form, case folded, without accents.

    >>> words_of("AMÉLIE's ﬁlm (2001)")
    ['amelie', 's', 'film', '2001']
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return re.findall(r"[^\W_]+", "".join(char for char in folded if not unicodedata.combining(char)))


class ItemSearch:
    """An index of a catalogue's titles: its words in order, and the rows of each."""

    def __init__(self, catalogue: Catalogue) -> None:
        rows: dict[str, list[int]] = defaultdict(list)
        for row, title in enumerate(catalogue.titles):
            for word in set(words_of(title)):
                rows[word].append(row)
        self._n_items = len(catalogue)
        self._words = sorted(rows)
        self._ends = np.cumsum([0, *(len(rows[word]) for word in self._words)])
        self._rows = np.array([row for word in self._words for row in rows[word]], dtype=np.int64)

    def search(self, text: str, popularity: FloatArray) -> IntArray:
        """Row numbers of the items whose title has, for each word of `text`, a word that begins with it; the largest
        `popularity` (N,) first, ties by row number. Nothing where `text` has no word."""
        words = set(words_of(text))
        matches = np.full(self._n_items, bool(words))
        for word in words:
            low, high = bisect_left(self._words, word), bisect_left(self._words, word + LAST)
            has = np.zeros(self._n_items, dtype=bool)
            has[self._rows[self._ends[low] : self._ends[high]]] = True
            matches &= has
        best = np.flatnonzero(matches)
        return best[np.argsort(-popularity[best], kind="stable")]
