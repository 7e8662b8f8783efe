"""The movies of the synthetic world: what is true of them, and their made-up titles.

Shapes: N movies, D latent dimensions, C clusters, G genres (18), T time buckets.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.data.synthetic.size import DAY_S, START_UTC, WorldSize

D: Final = 12
# MovieLens' genres: about the share of ml-1m's movies that have it as the leading one, and nouns for titles.
_GENRES: Final = {
    "Action": (0.11, "Chase Siege Hammer Fury Convoy Showdown Ambush Ricochet Overdrive Strike"),
    "Adventure": (0.04, "Voyage Compass Island Caravan Expedition Treasure Horizon Jungle Atlas Summit"),
    "Animation": (0.03, "Puppet Paintbox Teapot Scarecrow Lantern Snowman Marionette Crayon Pinwheel Bumblebee"),
    "Children's": (0.05, "Puppy Treehouse Marmalade Kitten Sandbox Lollipop Pony Holiday Birthday Rabbit"),
    "Comedy": (0.2, "Wedding Neighbour Mishap Landlord Cousin Lottery Butler Vacation Sandwich Uproar"),
    "Crime": (0.05, "Heist Alibi Racket Informer Verdict Safecracker Witness Payoff Precinct Forger"),
    "Documentary": (0.03, "Portrait Archive Chronicle Glacier Orchestra Harvest Factory Migration Workshop Census"),
    "Drama": (0.22, "Daughter Winter Letter Orchard Silence Father Promise River Inheritance Sorrow"),
    "Fantasy": (0.02, "Dragon Wizard Amulet Enchantment Unicorn Prophecy Labyrinth Griffin Spell Oracle"),
    "Film-Noir": (0.01, "Shadow Alley Cigarette Nightfall Blonde Pier Fog Stranger Neon Backroom"),
    "Horror": (0.07, "Crypt Curse Cellar Fangs Asylum Seance Graveyard Howl Phantom Swamp"),
    "Musical": (0.02, "Melody Rhapsody Chorus Tango Footlights Serenade Waltz Encore Vaudeville Refrain"),
    "Mystery": (0.02, "Cipher Clue Mansion Riddle Keyhole Vanishing Enigma Lighthouse Footprint Secret"),
    "Romance": (0.03, "Kiss Heart Moonlight Sweetheart Rose Rendezvous Springtime Valentine Embrace Honeymoon"),
    "Sci-Fi": (0.03, "Orbit Android Nebula Starship Galaxy Quantum Reactor Colony Satellite Machine"),
    "Thriller": (0.04, "Deadline Pursuit Conspiracy Hostage Sniper Blackmail Paranoia Wiretap Countdown Trap"),
    "War": (0.02, "Battalion Trench Armistice Regiment Bombardier Frontline Bunker Brigade Ceasefire Squadron"),
    "Western": (0.01, "Saddle Canyon Stagecoach Gunslinger Prairie Ranch Outlaw Mesa Sheriff Mustang"),
}
GENRES: Final = tuple(_GENRES)

NEIGHBOURS: Final = 3  # clusters whose movies also turn up on a page about a cluster
NEIGHBOUR_WEIGHT: Final = 0.12  # of theirs, against 1 for the cluster's own movies
FRANCHISE_SHARE: Final = 0.15  # of movies that open a franchise of two to four
POPULARITY_SD: Final = 1.4  # of the log weight...
OBSCURITY: Final = 1.5  # ...less an exponential of this mean: the tail of the forgotten is the longer one
FAME_QUALITY: Final = 0.45  # correlation of log popularity and quality
RISE_DAYS: Final = 12.0  # word of mouth: popularity climbs over the first weeks
NOVELTY: Final = 2.4  # height of the release boost on the log scale...
NOVELTY_DAYS: Final = 75.0  # ...and how fast it fades
AGEING: Final = 0.9  # a slow second fade, over years
AGEING_DAYS: Final = 1500.0
MAX_BUCKETS: Final = 400

PLAIN: Final = "Last Long Golden Hidden Broken Quiet Distant Second Burning Little Blue Wild Empty Final Lost"
ONSETS: Final = "b br d dr f fl gl j l m n r s t th tr v w"  # too few for common rude words
VOWELS: Final = "a e i o u a e i o é è ö ü á ó ø"  # some accents, all in Latin-1
CODAS: Final = ("", "", "n", "r", "l", "s", "nd", "th", "ñ")
PART: Final = ("", "II", "III", "IV")
NAMES_PER_CLUSTER: Final = 6


@dataclass(frozen=True)
class Movies:
    """Everything true about the movies."""

    item_id: NDArray[np.int64]  # (N,) ascending, with gaps as in MovieLens
    factors: NDArray[np.float32]  # (N, D) rows of unit length
    cluster: NDArray[np.int32]  # (N,) in 0..C-1
    franchise: NDArray[np.int32]  # (N,) movies of one franchise share a number, -1 is none
    genres: NDArray[np.bool_]  # (N, G) columns as `GENRES`
    quality: NDArray[np.float32]  # (N,) standard normal; raises every rating
    log_base: NDArray[np.float32]  # (N,) log popularity apart from age
    release_utc: NDArray[np.int64]  # (N,) seconds; before that no one can rate it
    near: NDArray[np.int32]  # (C, 1 + NEIGHBOURS) a cluster and its nearest ones
    bucket_s: int  # length of a popularity bucket
    n_buckets: int  # T

    @cached_property
    def _factors_t(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.factors.T)  # (D, N)

    def affinity(self, taste: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N,) float32: how well each movie meets a taste (D,).

        Not `@`: BLAS adds up in an order of its own, so that the world's bytes would depend on the library.
        """
        return np.asarray(np.einsum("dn,d->n", self._factors_t, taste, optimize=False))

    @cached_property
    def popularity(self) -> NDArray[np.float32]:
        """(T, N) float32: weight of a movie in each bucket, 0 while it is not released at the bucket's start."""
        out = np.empty((self.n_buckets, len(self.item_id)), np.float32)
        for row, start in zip(out, START_UTC + self.bucket_s * np.arange(self.n_buckets), strict=True):
            age_s = start - self.release_utc
            row[:] = np.where(age_s >= 0, np.exp(self.log_base) * age_factor(age_s), 0)
        return out

    def bucket(self, timestamp: int) -> int:
        """Bucket of a moment; moments outside the span get the first or last one."""
        return min(max((timestamp - START_UTC) // self.bucket_s, 0), self.n_buckets - 1)

    @cached_property
    def themes(self) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """For each cluster: movie rows that a page about it may show, and their relative weight."""
        members = [np.flatnonzero(self.cluster == c) for c in range(len(self.near))]
        out = []
        for own, *others in self.near:
            rows = np.concatenate([members[own], *(members[o] for o in others)])
            weight = np.full(len(rows), NEIGHBOUR_WEIGHT, np.float32)
            weight[: len(members[own])] = 1.0
            out.append((rows, weight))
        return out


def age_factor(age_s: NDArray[np.int64]) -> NDArray[np.float64]:
    """Popularity against age: rises from .1 within weeks, fades within months, then slowly over years."""
    days = np.maximum(age_s, 0) / DAY_S
    rise = 1 - 0.9 * np.exp(-days / RISE_DAYS)
    boost = np.exp(NOVELTY * np.exp(-days / NOVELTY_DAYS) + AGEING * np.exp(-days / AGEING_DAYS))
    return np.asarray(rise * boost)


def make_movies(rng: np.random.Generator, size: WorldSize) -> Movies:
    """Draw a catalogue. Clusters have leading genres, genres have directions in taste space, movies scatter around."""
    n, c = size.n_items, size.n_clusters
    genre_factors = unit(rng.standard_normal((len(GENRES), D)))
    share = np.array([part for part, _ in _GENRES.values()])
    leading = rng.choice(len(GENRES), c, p=share / share.sum())  # (C,)
    second = rng.choice(len(GENRES), (c, 2), p=share / share.sum())  # (C, 2)
    centres = unit(genre_factors[leading] + 0.5 * genre_factors[second].sum(1) + 0.35 * rng.standard_normal((c, D)))
    near = np.argsort(-(centres @ centres.T), axis=1, kind="stable")[:, : 1 + NEIGHBOURS]
    near[:, 0] = np.arange(c)  # a cluster is nearest to itself, whatever the rounding

    # Every cluster gets a first movie, the rest fall by cluster size; members of a franchise follow their opener.
    cluster = np.concatenate([np.arange(c), rng.choice(c, n - c, p=rng.dirichlet(np.full(c, 6.0)))])
    rng.shuffle(cluster)
    franchise = _franchises(rng, cluster)
    genres = np.zeros((n, len(GENRES)), bool)
    rows = np.arange(n)
    genres[rows, leading[cluster]] = rng.random(n) < 0.85
    for extra in (second[cluster, 0], second[cluster, 1]):
        genres[rows, extra] |= rng.random(n) < 0.35
    genres[rows, rng.integers(len(GENRES), size=n)] |= rng.random(n) < 0.08
    genres[rows, leading[cluster]] |= ~genres.any(1)

    mean_genre = (genres @ genre_factors) / genres.sum(1, keepdims=True)
    factors = unit(centres[cluster] + 0.5 * mean_genre + 0.16 * rng.standard_normal((n, D)))
    log_base = POPULARITY_SD * rng.standard_normal(n) - OBSCURITY * rng.exponential(1.0, n)
    fame = (log_base - log_base.mean()) / log_base.std()
    quality = FAME_QUALITY * fame + np.sqrt(1 - FAME_QUALITY**2) * rng.standard_normal(n)
    for movies in _groups(franchise):  # sequels resemble their opener and share its fame
        factors[movies[1:]] = unit(0.4 * factors[movies[1:]] + factors[movies[0]])
        log_base[movies[1:]] = 0.4 * log_base[movies[1:]] + 0.6 * log_base[movies[0]]

    buckets = min(MAX_BUCKETS, size.days)
    return Movies(
        item_id=np.sort(rng.choice(n + n // 16, n, replace=False)).astype(np.int64) + 1,
        factors=factors.astype(np.float32),
        cluster=cluster.astype(np.int32),
        franchise=franchise,
        genres=genres,
        quality=quality.astype(np.float32),
        log_base=log_base.astype(np.float32),
        release_utc=_releases(rng, size, cluster, franchise),
        near=near.astype(np.int32),
        bucket_s=-(-size.days * DAY_S // buckets),
        n_buckets=buckets,
    )


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (or the one vector) scaled to length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _groups(franchise: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Movie rows of each franchise, ascending."""
    rows = np.flatnonzero(franchise >= 0)
    rows = rows[np.argsort(franchise[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(franchise[rows])) + 1) if len(rows) else []


def _franchises(rng: np.random.Generator, cluster: NDArray[np.int64]) -> NDArray[np.int32]:
    """Cut each cluster's movies, in random order, into runs of two to four until the share is used up."""
    out = np.full(len(cluster), -1, np.int32)
    number = 0
    for c in range(int(cluster.max()) + 1):
        rows = rng.permutation(np.flatnonzero(cluster == c))
        budget = 2.5 * FRANCHISE_SHARE * len(rows)
        at = 0
        while at + 2 <= budget:
            length = int(rng.integers(2, 5))
            out[rows[at : at + length]] = number
            number, at = number + 1, at + length
    return out


def _releases(
    rng: np.random.Generator, size: WorldSize, cluster: NDArray[np.int64], franchise: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Most of the catalogue is there at the start, by eras that differ between clusters; the rest comes out during it.

    At most a quarter is new, so that even the busiest early user (66 % of the catalogue) finds enough to rate.
    """
    n = size.n_items
    scale_days = 365 * 9 * np.exp(0.7 * rng.standard_normal(size.n_clusters))  # (C,)
    before = -np.minimum(rng.exponential(scale_days[cluster]), 365 * 70) - 1  # days before the start
    new = rng.choice(n, int(n * min(0.25, 0.05 + 0.035 * size.days / 365)), replace=False)
    before[new] = rng.uniform(0, size.days * 0.97, len(new))
    release = START_UTC + (before * DAY_S).astype(np.int64)
    for movies in _groups(franchise):  # in order of release, so that a sequel follows its opener
        release[movies] = np.sort(release[movies])
    return release


def make_titles(rng: np.random.Generator, movies: Movies) -> list[str]:
    """One "Title (Year)" a movie. A leading article stands behind a comma, as in MovieLens ("Siege, The (1994)").

    A cluster has its own six invented names; a movie's genre lends it a noun. Movies of one franchise share a
    title and are numbered in order of release.
    """
    names = [[_name(rng) for _ in range(NAMES_PER_CLUSTER)] for _ in range(len(movies.near))]
    bases: dict[int, str] = {}
    parts: dict[int, int] = {}
    taken: set[str] = set()
    titles = [""] * len(movies.item_id)
    for row in np.lexsort((np.arange(len(titles)), movies.release_utc)):
        franchise = int(movies.franchise[row])
        if franchise in bases:
            parts[franchise] += 1
            text = f"{bases[franchise]} {PART[parts[franchise]]}"
        else:
            text = _base(rng, names[movies.cluster[row]], np.flatnonzero(movies.genres[row]))
            while text in taken:
                text = f"{_name(rng)}: {text}"
            if franchise >= 0:
                bases[franchise], parts[franchise] = text, 0
        taken.add(text)
        text = re.sub(r"^(The|A) (.*)$", r"\2, \1", text)
        titles[row] = f"{text} ({datetime.fromtimestamp(int(movies.release_utc[row]), UTC).year})"
    return titles


def _base(rng: np.random.Generator, names: list[str], genres: np.ndarray) -> str:
    """A title from one of five moulds; a noun of one of the movie's genres is in each, a cluster's name in most."""
    noun = str(rng.choice(_GENRES[GENRES[int(rng.choice(genres))]][1].split()))
    name = names[int(rng.integers(len(names)))]
    plain = str(rng.choice(PLAIN.split()))
    moulds = (
        f"The {noun} of {name}",
        f"{name}'s {noun}",
        f"{name}, {noun} and {plain} Days",
        f"A {plain} {noun} in {name}",
        f"The {plain} {noun}",
    )
    return moulds[int(rng.choice(len(moulds), p=(0.25, 0.2, 0.1, 0.2, 0.25)))]


def _name(rng: np.random.Generator) -> str:
    """An invented name of two or three syllables."""
    syllables = int(rng.integers(2, 4))
    pairs = zip(rng.choice(ONSETS.split(), syllables), rng.choice(VOWELS.split(), syllables), strict=True)
    text = "".join(onset + vowel for onset, vowel in pairs)
    return (text + CODAS[rng.integers(len(CODAS))]).capitalize()
