"""How a person of the synthetic world chooses and rates: sessions, pages, themes, stars.

Stage: data. In: `Movies`, a `Person`, their number of events, their own random generator. Out: their events in order.
Absent: files (`writer`), and any state that outlasts a person.

A session is a run of *pages*. A page has a theme, a cluster of movies: often that of a movie on the page before,
otherwise one the person likes. Of a page's movies about THEME_SHARE belong to the theme, the rest come from all
movies. Both kinds are drawn without replacement in proportion to popularity now x exp(taste now), by an exponential
race: the k smallest of E_i / weight_i, E_i standard exponential, are such a draw (Efraimidis and Spirakis 2006,
"Weighted random sampling with a reservoir"). So the recent movies say much about the next one, and never all.

Shapes: N movies, D latent dimensions, C clusters, n events of the person or session.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.data.synthetic.movies import Movies
from recsys.data.synthetic.people import Person
from recsys.data.synthetic.size import DAY_S, START_UTC

THEME_SHARE: Final = 0.7  # of a page's movies that are drawn from its theme
STAY: Final = 0.65  # chance that a page takes its theme from a movie of the page before
RETURN_STAY: Final = 0.3  # the same across the gap between two sessions
FRANCHISE_PULL: Final = 6.0  # weight of a movie whose franchise was on the page before
PAGE_EXTRA: Final = 4.0  # a page has 1 + Poisson(this) rated movies
MOOD_SD: Final = 0.25  # taste of the day, for each dimension

ONE_SESSION_SHARE: Final = 0.55  # of people who never return
RETURN_MEAN: Final = 3.0  # later sessions of the others
GAP_DAYS, GAP_SD = 9.0, 1.3  # median and log-deviation between sessions
SAME_SECOND: Final = 0.6  # chance that a movie of a page is stamped with the second of the one before

MEAN_STARS, QUALITY_STARS, TASTE_STARS, NOISE_STARS = 3.2, 0.45, 0.3, 0.75


@dataclass(frozen=True)
class Events:
    """One person's events in the order they happened: movie rows, stars 1..5, seconds (never falling). All (n,)."""

    movie: NDArray[np.int64]
    rating: NDArray[np.int64]
    timestamp: NDArray[np.int64]


def taste_at(taste: NDArray[np.float32], drift: NDArray[np.float32], age_s: float) -> NDArray[np.float32]:
    """(D,) taste `age_s` seconds after arrival: it moves towards taste + drift, 63 % of the way in the first year."""
    return np.asarray(taste - drift * np.float32(math.expm1(-age_s / (365 * DAY_S))))


def live(rng: np.random.Generator, movies: Movies, person: Person, n: int) -> Events:
    """Everything that a person does. n must leave movies over at any time: at most 66 % of the catalogue."""
    last_start = START_UTC + movies.bucket_s * movies.n_buckets - DAY_S // 4
    seen = np.zeros(len(movies.item_id), bool)  # (N,)
    chosen: list[NDArray[np.int64]] = []
    stamps: list[NDArray[np.int64]] = []
    ratings: list[NDArray[np.int64]] = []
    now, previous = person.arrival_utc, np.empty(0, np.int64)
    for order, (gap_s, count) in enumerate(_plan(rng, n, last_start - person.arrival_utc)):
        if order:
            now = max(person.arrival_utc + gap_s, int(stamps[-1][-1]) + 3600)
        theme = int(movies.cluster[previous[-1]]) if order and rng.random() < RETURN_STAY else -1
        taste = taste_at(person.taste, person.drift, now - person.arrival_utc)
        affinity = movies.affinity(taste)  # (N,)
        mood = movies.affinity((MOOD_SD * rng.standard_normal(len(taste))).astype(np.float32))
        weight = movies.popularity[movies.bucket(now)] * np.exp(affinity + mood)  # (N,)
        weight[seen] = 0
        picked, times = _session(rng, movies, weight, theme, count, now)
        stars = (
            MEAN_STARS
            + person.bias
            + QUALITY_STARS * movies.quality[picked]
            + TASTE_STARS * affinity[picked]
            + NOISE_STARS * rng.standard_normal(count)
        )
        seen[picked] = True
        chosen.append(picked)
        stamps.append(times)
        ratings.append(np.clip(np.rint(stars), 1, 5).astype(np.int64))
        previous = picked
    return Events(np.concatenate(chosen), np.concatenate(ratings), np.concatenate(stamps))


def _plan(rng: np.random.Generator, n: int, room_s: int) -> list[tuple[int, int]]:
    """Sessions as (seconds after arrival, events >= 1). Those that would begin after `room_s` fold into the first."""
    returns = 0 if rng.random() < ONE_SESSION_SHARE else int(rng.geometric(1 / RETURN_MEAN))
    offsets = np.cumsum(DAY_S * GAP_DAYS * np.exp(GAP_SD * rng.standard_normal(returns)))
    offsets = offsets[offsets < room_s]
    if len(offsets) == 0:
        return [(0, n)]
    later = rng.multinomial(int(n * (1 - rng.beta(4, 3))), rng.dirichlet(np.full(len(offsets), 1.5)))
    plan = [(int(o), int(k)) for o, k in zip(offsets, later, strict=True) if k > 0]
    return [(0, n - sum(k for _, k in plan)), *plan]


def _session(
    rng: np.random.Generator, movies: Movies, weight: NDArray[np.float32], theme: int, n: int, start: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """n movie rows and their seconds. `weight` (N,) is zero where a movie cannot be chosen, and is used up on the way.

    `theme` is the cluster of the first page, or -1 to draw one. One race over all movies serves every free draw of
    the session: walking along it and skipping what a theme took is the same as drawing afresh each time.
    """
    sizes = 1 + rng.poisson(PAGE_EXTRA, n)  # (n,) more pages than needed
    ends = np.cumsum(sizes)
    pages = int(np.searchsorted(ends, n)) + 1
    sizes[pages - 1] -= ends[pages - 1] - n
    from_theme = rng.binomial(sizes[:pages], THEME_SHARE)
    stays = rng.random(pages) < STAY
    liked = np.cumsum(np.bincount(movies.cluster, weight, len(movies.near)))  # (C,)
    fresh = np.searchsorted(liked, rng.random(pages) * liked[-1], side="right")
    anchor = rng.random(pages)

    out = np.empty(n, np.int64)
    pulled = np.zeros(int(movies.franchise.max()) + 2, np.float32)  # the last place is for -1, no franchise
    at, page = 0, out[:0]
    # E / 0 is infinite (and 0 / 0, for an E rounded to 0, is NaN): a movie that cannot be chosen comes last.
    with np.errstate(divide="ignore", invalid="ignore"):
        race = rng.standard_exponential(len(weight), dtype=np.float32) / weight
        front = np.argpartition(race, n - 1)[:n]
        queue = front[np.argsort(race[front])]
        head = 0
        for p in range(pages):
            size = int(sizes[p])
            if len(page) and stays[p]:
                theme = int(movies.cluster[page[int(anchor[p] * len(page))]])
            elif len(page) or theme < 0:
                theme = int(fresh[p])
            taken = 0
            if from_theme[p]:
                rows, share = movies.themes[theme]
                w = weight[rows] * share * (1 + pulled[movies.franchise[rows]])
                k = min(int(from_theme[p]), int(np.count_nonzero(w)))
                if k:
                    drawn = rng.standard_exponential(len(rows), dtype=np.float32) / w
                    pick = rows[np.argpartition(drawn, k - 1)[:k]]
                    out[at : at + k] = pick
                    weight[pick] = 0
                    taken = k
            while taken < size:
                row = queue[head]
                head += 1
                if weight[row] > 0:
                    out[at + taken] = row
                    weight[row] = 0
                    taken += 1
            pulled[movies.franchise[page]] = 0
            page = out[at : at + size]
            rng.shuffle(page)
            pulled[movies.franchise[page]] = FRANCHISE_PULL - 1
            pulled[-1] = 0
            at += size
    return out, _stamps(rng, sizes[:pages], start)


def _stamps(rng: np.random.Generator, sizes: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """(n,) seconds: a page takes half a minute or so, and half of its movies share a second with the one before."""
    n = int(sizes.sum())
    steps = np.where(rng.random(n) < SAME_SECOND, 0, 1 + rng.geometric(1 / 6, n))
    firsts = np.cumsum(sizes) - sizes
    steps[firsts] = 8 + rng.geometric(1 / 25, len(sizes))
    steps[0] = 0
    return np.asarray(start + np.cumsum(steps))
