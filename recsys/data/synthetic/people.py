"""The people of the synthetic world: who they are, and how they choose and rate.

A session is a run of *pages*. A page has a theme, a cluster of movies: often that of a movie on the page before,
otherwise one the person likes. About THEME_SHARE of its movies belong to the theme, the rest come from all. Both
are drawn without replacement in proportion to popularity now x exp(taste now), by an exponential race: the k least of
E_i / weight_i, E_i standard exponential (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir").

Shapes: N movies, U users, D latent dimensions, C clusters, n events of the person or session.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.data.synthetic.movies import D, Movies
from recsys.data.synthetic.size import DAY_S, MAX_SHARE_PER_USER, MIN_EVENTS_PER_USER, START_UTC, WorldSize

AGES: Final = (1, 18, 25, 35, 45, 50, 56)  # ml-1m's codes: the lower end of a bracket, 1 is "under 18"
AGE_SHARE: Final = (0.04, 0.18, 0.35, 0.2, 0.09, 0.08, 0.06)
FEMALE_SHARE: Final = 0.28
N_OCCUPATIONS: Final = 21
USUAL_OCCUPATION: Final = {1: (0.8, 10), 18: (0.5, 4), 56: (0.4, 13)}  # pupil, student, retired in ml-1m's codes

COUNT_SD: Final = 1.1  # of log(events beyond 20); gives ml-1m's mean 166 beside a median of about 96
GENDER_SD, AGE_SD, OCCUPATION_SD, OWN_SD = 0.7, 0.7, 0.35, 0.7  # taste, for each dimension
DRIFT_SD: Final = 1.0  # taste change for each dimension in the long run (`taste_at`)
BIAS_SD: Final = 0.4  # stars

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


Society = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # mean tastes, (groups, D)


@dataclass(frozen=True)
class Person:
    """One user. `taste` (D,) at arrival and `drift` (D,) in the long run are float32, `bias` is in stars."""

    gender: int  # 0 is F, 1 is M
    age: int  # place in AGES
    occupation: int
    zip_code: str
    taste: NDArray[np.float32]
    drift: NDArray[np.float32]
    bias: float
    arrival_utc: int


def make_society(rng: np.random.Generator) -> Society:
    """Of women and men, of the ages (along a path, so that neighbours resemble each other), of the occupations."""
    gender = GENDER_SD * rng.standard_normal(D)
    path = np.cumsum(rng.standard_normal((len(AGES), D)), axis=0)
    path = (path - path.mean(0)) / path.std()
    both = np.stack([gender, -gender * FEMALE_SHARE / (1 - FEMALE_SHARE)])
    return both, AGE_SD * path, OCCUPATION_SD * rng.standard_normal((N_OCCUPATIONS, D))


def make_person(rng: np.random.Generator, society: Society, size: WorldSize) -> Person:
    """Draw one user; arrivals are even over the span, more of them in the evening (UTC)."""
    gender = int(rng.random() >= FEMALE_SHARE)
    age = int(np.searchsorted(np.cumsum(AGE_SHARE)[:-1], rng.random(), side="right"))
    occupation = int(rng.integers(N_OCCUPATIONS))
    share, usual = USUAL_OCCUPATION.get(AGES[age], (0.0, 0))
    if share and rng.random() < share:
        occupation = usual
    mean = society[0][gender] + society[1][age] + society[2][occupation]
    day = int(rng.integers(size.days - 1))
    second = int(rng.normal(20 * 3600, 4 * 3600)) % DAY_S
    return Person(
        gender=gender,
        age=age,
        occupation=occupation,
        zip_code=f"{int(rng.integers(100_000)):05d}",
        taste=(mean + OWN_SD * rng.standard_normal(D)).astype(np.float32),
        drift=(DRIFT_SD * rng.standard_normal(D)).astype(np.float32),
        bias=float(BIAS_SD * rng.standard_normal()),
        arrival_utc=START_UTC + day * DAY_S + second,
    )


def make_counts(rng: np.random.Generator, size: WorldSize) -> NDArray[np.int64]:
    """(U,) events of each user, summing to n_events exactly: 20 and a lognormal rest, capped at 66 % of the movies."""
    cap = int(MAX_SHARE_PER_USER * size.n_items)
    raw = np.exp(COUNT_SD * rng.standard_normal(size.n_users))

    low, high = 0.0, cap / float(raw.min())  # at `high` everyone is capped, which is more than MAX_DENSITY allows
    for _ in range(200):
        middle = (low + high) / 2
        fits = np.minimum(MIN_EVENTS_PER_USER + middle * raw, cap).sum() <= size.n_events
        low, high = (middle, high) if fits else (low, middle)
    wanted = np.minimum(MIN_EVENTS_PER_USER + low * raw, cap)
    counts = np.floor(wanted).astype(np.int64)
    short = size.n_events - int(counts.sum())
    counts[np.argsort(-(wanted - counts), kind="stable")[:short]] += 1  # largest remainders
    return counts


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
    sessions: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    now, theme = person.arrival_utc, -1
    for order, (gap_s, count) in enumerate(_plan(rng, n, last_start - person.arrival_utc)):
        if order:
            last_items, _, last_times = sessions[-1]
            now = max(person.arrival_utc + gap_s, int(last_times[-1]) + 3600)
            theme = int(movies.cluster[last_items[-1]]) if rng.random() < RETURN_STAY else -1
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
        sessions.append((picked, np.clip(np.rint(stars), 1, 5).astype(np.int64), times))
    return Events(*(np.concatenate(parts) for parts in zip(*sessions, strict=True)))


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
