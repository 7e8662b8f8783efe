"""The people of the synthetic world: who they are, when they arrive, what they like and how much they rate.

Stage: data. In: random generators and a `WorldSize`. Out: `Society` (what groups have in common), the number of
events of every user, and one `Person` at a time. Absent: what they rate (`behaviour`).

A person is drawn from a generator of their own, so that no person depends on how many are processed together.
Shapes: U users, D latent dimensions.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.data.synthetic.movies import D
from recsys.data.synthetic.size import DAY_S, MAX_SHARE_PER_USER, MIN_EVENTS_PER_USER, START_UTC, WorldSize

AGES: Final = (1, 18, 25, 35, 45, 50, 56)  # ml-1m's codes: the lower end of a bracket, 1 is "under 18"
AGE_SHARE: Final = (0.04, 0.18, 0.35, 0.2, 0.09, 0.08, 0.06)
FEMALE_SHARE: Final = 0.28
N_OCCUPATIONS: Final = 21
STUDENT_K12, STUDENT, RETIRED = 10, 4, 13  # ml-1m's codes

COUNT_SD: Final = 1.1  # of log(events beyond 20); gives ml-1m's mean 166 beside a median of about 96
GENDER_SD, AGE_SD, OCCUPATION_SD, OWN_SD = 0.7, 0.7, 0.35, 0.7  # taste, for each dimension
DRIFT_SD: Final = 1.0  # taste change for each dimension in the long run (`behaviour.taste_at`)
BIAS_SD: Final = 0.4  # stars


@dataclass(frozen=True)
class Society:
    """Mean taste of each group: gender (2, D) as F, M; age (7, D) as `AGES`; occupation (21, D). float64."""

    gender: NDArray[np.float64]
    age: NDArray[np.float64]
    occupation: NDArray[np.float64]


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
    """Men and women differ by a direction; ages lie along a path, so that neighbouring brackets resemble each other."""
    gender = GENDER_SD * rng.standard_normal(D)
    path = np.cumsum(rng.standard_normal((len(AGES), D)), axis=0)
    path = (path - path.mean(0)) / path.std()
    return Society(
        gender=np.stack([gender, -gender * FEMALE_SHARE / (1 - FEMALE_SHARE)]),
        age=AGE_SD * path,
        occupation=OCCUPATION_SD * rng.standard_normal((N_OCCUPATIONS, D)),
    )


def make_person(rng: np.random.Generator, society: Society, size: WorldSize) -> Person:
    """Draw one user; arrivals are even over the span, more of them in the evening (UTC)."""
    gender = int(rng.random() >= FEMALE_SHARE)
    age = int(np.searchsorted(np.cumsum(AGE_SHARE)[:-1], rng.random(), side="right"))
    occupation = int(rng.integers(N_OCCUPATIONS))
    if AGES[age] == 1 and rng.random() < 0.8:
        occupation = STUDENT_K12
    elif AGES[age] == 18 and rng.random() < 0.5:
        occupation = STUDENT
    elif AGES[age] == 56 and rng.random() < 0.4:
        occupation = RETIRED
    mean = society.gender[gender] + society.age[age] + society.occupation[occupation]
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

    def at(scale: float) -> NDArray[np.float64]:
        return np.minimum(MIN_EVENTS_PER_USER + scale * raw, cap)

    low, high = 0.0, cap / float(raw.min())  # at `high` everyone is capped, which is more than MAX_DENSITY allows
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() <= size.n_events else (low, middle)
    wanted = at(low)
    counts = np.floor(wanted).astype(np.int64)
    short = size.n_events - int(counts.sum())
    counts[np.argsort(-(wanted - counts), kind="stable")[:short]] += 1  # largest remainders
    return counts
