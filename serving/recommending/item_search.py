"""The search by title: every word counts, without accents and in any Unicode form."""

import re
import unicodedata

import numpy as np

from recsys.arrays import FloatArray, IntArray
from recsys.features.catalogue import Catalogue


def words_of(text: str) -> list[str]:
    """Words as they are compared: in compatibility form, case folded, without accents.

    >>> words_of("AMÉLIE's ﬁlm (2001)")
    ['amelie', 's', 'film', '2001']
    """
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return re.findall(r"[^\W_]+", "".join(char for char in folded if not unicodedata.combining(char)))


class ItemSearch:
    """The titles of a catalogue as one text, a line an item, a space before each word."""

    def __init__(self, catalogue: Catalogue) -> None:
        lines = ["".join(f" {word}" for word in words_of(title)) + "\n" for title in catalogue.titles]
        self._text = "".join(lines)
        self._ends = np.cumsum([len(line) for line in lines])

    def search(self, text: str, popularity: FloatArray) -> IntArray:
        """Row numbers of the items whose title has, for each word of `text`, a word that begins with it; the largest
        `popularity` (N,) first, ties by row number. Nothing where `text` has no word."""
        words = set(words_of(text))
        rows = np.arange(len(self._ends) if words else 0)
        for word in words:
            places = [match.start() for match in re.finditer(f" {word}", self._text)]
            rows = np.intersect1d(rows, np.searchsorted(self._ends, places, side="right"))
        return rows[np.argsort(-popularity[rows], kind="stable")]
