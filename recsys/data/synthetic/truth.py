"""What is really so in a synthetic world, kept beside its files for tests and simulations.

Stage: data. In: a world's folder. Out: `Truth`, with the chance of each next movie and the stars to expect. Absent:
any use by a recommender: a model that reads this knows the answers.

Shapes: N movies (rows of `movies.item_id`), U users (row u is user id u + 1), D latent dimensions, C clusters.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.data.synthetic.behaviour import (
    FRANCHISE_PULL,
    MEAN_STARS,
    PAGE_EXTRA,
    QUALITY_STARS,
    STAY,
    TASTE_STARS,
    THEME_SHARE,
    taste_at,
)
from recsys.data.synthetic.movies import Movies
from recsys.errors import MissingArtefactError

MOVIES_FILE: Final = "movies.npz"
USERS_FILE: Final = "users.npz"
RECENT: Final = 2 + int(PAGE_EXTRA)  # movies that say what the session is about


@dataclass(frozen=True)
class Users:
    """What is true of the users, a row each.

    taste        (U, D) float32 at arrival
    drift        (U, D) float32, change of taste in the long run (`behaviour.taste_at`)
    bias         (U,) float32, stars
    arrival_utc  (U,) int64, seconds of the first event
    n_events     (U,) int64
    """

    taste: NDArray[np.float32]
    drift: NDArray[np.float32]
    bias: NDArray[np.float32]
    arrival_utc: NDArray[np.int64]
    n_events: NDArray[np.int64]


@dataclass(frozen=True)
class Truth:
    """The whole hidden truth, but for the themes of the pages and the mood of each session, which nobody noted."""

    movies: Movies
    users: Users

    def movie_rows(self, item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of movie ids; every id must be one of the world's."""
        return np.asarray(np.searchsorted(self.movies.item_id, item_ids))

    def taste(self, user_row: int, timestamp: int) -> NDArray[np.float32]:
        """(D,) taste of a user at a moment; before arrival it is the one at arrival."""
        age_s = max(0, timestamp - int(self.users.arrival_utc[user_row]))
        return taste_at(self.users.taste[user_row], self.users.drift[user_row], age_s)

    def expected_stars(self, user_row: int, timestamp: int) -> NDArray[np.float64]:
        """(N,) mean stars before noise and rounding, held to 1..5."""
        m = self.movies
        stars = MEAN_STARS + self.users.bias[user_row] + QUALITY_STARS * m.quality
        stars = stars + TASTE_STARS * m.affinity(self.taste(user_row, timestamp))
        return np.asarray(np.clip(stars, 1.0, 5.0), float)

    def next_chances(
        self, user_row: int, timestamp: int, history: NDArray[np.int64], *, theme_share: float = THEME_SHARE
    ) -> NDArray[np.float64]:
        """(N,) chance of each movie to be the user's next one, about as well as it can be known; sums to 1.

        `history` holds the movie rows of the user's events, oldest first; they get chance 0. The theme of the page
        is not known, so the clusters of the last few movies stand in for it, the latest counting most. With
        `theme_share` 0 only popularity and taste count: what a perfect model without sequences would know.
        """
        m = self.movies
        weight = m.popularity[m.bucket(timestamp)] * np.exp(m.affinity(self.taste(user_row, timestamp))).astype(float)
        weight[history] = 0
        free = weight / weight.sum()
        if theme_share == 0:
            return np.asarray(free)
        by_cluster = np.bincount(m.cluster, weight, len(m.near))
        themes = by_cluster / by_cluster.sum()  # (C,)
        recent = history[-RECENT:][::-1]
        if len(recent):
            decay = 0.8 ** np.arange(len(recent))
            stay = (1 + STAY) / 2  # either still on that page, or on one that follows it
            themes = (1 - stay) * themes + stay * np.bincount(
                m.cluster[recent], decay / decay.sum(), minlength=len(m.near)
            )
        pull = np.isin(m.franchise, m.franchise[recent][m.franchise[recent] >= 0])  # (N,)
        weight = weight * np.where(pull, FRANCHISE_PULL, 1.0)
        chances = (1 - theme_share) * free
        for c in np.flatnonzero(themes > 1e-3):
            rows, share = m.themes[c]
            w = weight[rows] * share
            if w.sum() > 0:
                chances[rows] += theme_share * themes[c] * w / w.sum()
        return np.asarray(chances / chances.sum())


def save_truth(truth: Truth, folder: Path) -> None:
    """Write two npz files into `folder`/truth; numpy stamps them with a fixed date, so equal truth is equal bytes."""
    inside = folder / "truth"
    inside.mkdir(parents=True)
    for name, part in ((MOVIES_FILE, truth.movies), (USERS_FILE, truth.users)):
        arrays = {f.name: np.asarray(getattr(part, f.name)) for f in fields(part)}
        np.savez(inside / name, allow_pickle=False, **arrays)


def load_truth(folder: Path) -> Truth:
    """Read the hidden truth of the world in `folder`. Raises MissingArtefactError where there is none."""
    inside = folder / "truth"
    if not ((inside / MOVIES_FILE).exists() and (inside / USERS_FILE).exists()):
        raise MissingArtefactError(f"No hidden truth in {inside}: {folder} is not a synthetic world. Generate one.")
    with np.load(inside / MOVIES_FILE) as stored:
        arrays = {f.name: stored[f.name] for f in fields(Movies)}
    for name in ("bucket_s", "n_buckets"):
        arrays[name] = int(arrays[name])
    with np.load(inside / USERS_FILE) as stored:
        users = Users(**{f.name: stored[f.name] for f in fields(Users)})
    return Truth(Movies(**arrays), users)
