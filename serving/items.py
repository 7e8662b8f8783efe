"""What an answer says about each item, made once for a catalogue; and the search by title.

Stage: serving. In: a `Catalogue`. Out: a dict an item, ready to go into an answer. Absent: scores.
"""

from collections import defaultdict
from typing import Any

import numpy as np

from recsys.arrays import FloatArray, IntArray
from recsys.features.catalogue import Catalogue, title_words


class Items:
    """facts   N dicts: item_id, title, year, genres; an answer copies them, and must not change them."""

    def __init__(self, catalogue: Catalogue) -> None:
        names = catalogue.genre_names
        genres: list[list[str]] = [[] for _ in range(len(catalogue))]
        for row, column in zip(*(axis.tolist() for axis in np.nonzero(catalogue.genres)), strict=True):
            genres[row].append(names[column])
        self.facts: list[dict[str, Any]] = [
            {"item_id": item_id, "title": title, "year": None if np.isnan(year) else int(year), "genres": own}
            for item_id, title, year, own in zip(
                catalogue.item_ids.tolist(), catalogue.titles, catalogue.years.tolist(), genres, strict=True
            )
        ]
        self._rows: dict[str, list[int]] = defaultdict(list)  # of each word
        for row, title in enumerate(catalogue.titles):
            for word in set(title_words(title)):
                self._rows[word].append(row)

    def search(self, text: str, popularity: FloatArray) -> IntArray:
        """Row numbers of the items whose title has, for each word of `text`, a word that begins with it; the largest
        `popularity` (N,) first, ties by row number. Nothing where `text` has no word."""
        found: set[int] | None = None
        for asked in title_words(text):
            rows = {row for word, own in self._rows.items() if word.startswith(asked) for row in own}
            found = rows if found is None else found & rows
        best = np.array(sorted(found or ()), dtype=np.int64)
        return best[np.argsort(-popularity[best], kind="stable")]
