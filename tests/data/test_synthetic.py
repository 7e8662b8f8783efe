"""The synthetic world: its layout, its determinism, and the truths that a recommender should be able to find."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from recsys.data.synthetic import WorldSize, generate_world
from recsys.data.synthetic.movies import GENRES, Movies, age_factor, make_movies
from recsys.data.synthetic.people import AGES, MEAN_STARS, QUALITY_STARS, TASTE_STARS, Person, taste_at
from recsys.data.synthetic.size import DAY_S, START_UTC
from recsys.data.synthetic.writer import CATALOGUE, lives, stream
from recsys.errors import ConfigError

SMALL = WorldSize(n_users=60, n_items=200, n_events=3000)
ML_100K = WorldSize()
SEED = 7


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ratings_of(folder: Path) -> np.ndarray:
    """(n, 4) int64: user id, movie id, stars, seconds, in the order of the file."""
    lines = (folder / "ratings.dat").read_text(encoding="latin-1").splitlines()
    return np.array([[int(field) for field in line.split("::")] for line in lines])


def rows_of(folder: Path, name: str) -> list[list[str]]:
    return [line.split("::") for line in (folder / name).read_text(encoding="latin-1").splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default world, ml-100k's size."""
    folder = tmp_path_factory.mktemp("synthetic") / "world"
    generate_world(folder, ML_100K, seed=SEED)
    return folder


@pytest.fixture(scope="module")
def ratings(world: Path) -> np.ndarray:
    return ratings_of(world)


@pytest.fixture(scope="module")
def movies() -> Movies:
    """What is hidden from every model."""
    return make_movies(stream(SEED, CATALOGUE), ML_100K)


@pytest.fixture(scope="module")
def people(movies: Movies) -> list[Person]:
    return [person for person, _ in lives(SEED, ML_100K, movies)]


@pytest.fixture(scope="module")
def rows(ratings: np.ndarray, movies: Movies) -> np.ndarray:
    """The row in `movies` of every rating."""
    return np.searchsorted(movies.item_id, ratings[:, 1])


def test_a_seed_gives_the_same_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate_world(tmp_path / name, SMALL, seed)
    a, b, c = (bytes_of(tmp_path / name) for name in "abc")
    assert a == b
    assert sorted(a) == ["README", "SYNTHETIC.json", "movies.dat", "ratings.dat", "users.dat"]
    assert all(a[name] != c[name] for name in a)


def test_files_have_the_layout_of_ml_1m(world: Path, ratings: np.ndarray) -> None:
    assert len(ratings) == 100_000
    assert [int(r[0]) for r in rows_of(world, "users.dat")] == list(range(1, 944))
    counts = np.bincount(ratings[:, 0], minlength=944)[1:]
    assert counts.min() >= 20
    assert counts.max() > 5 * np.median(counts)  # a few users are busy
    movies = rows_of(world, "movies.dat")
    assert len(movies) == 1682
    ids = [int(row[0]) for row in movies]
    assert ids == sorted(set(ids))
    assert ids[-1] > len(ids)  # gaps, as in MovieLens
    titles = [row[1] for row in movies]
    assert all(re.fullmatch(r"\S.*\S \((19|20)\d\d\)", title) for title in titles)
    assert len(set(titles)) == len(titles)
    assert any("," in title for title in titles)
    assert any(re.search("[à-ÿ]", title) for title in titles)
    assert {g for row in movies for g in row[2].split("|")} <= set(GENRES)
    for _, gender, age, occupation, zip_code in rows_of(world, "users.dat"):
        assert gender in "FM"
        assert int(age) in AGES
        assert 0 <= int(occupation) <= 20
        assert re.fullmatch(r"\d{5}", zip_code)
    assert set(ratings[:, 1]) <= set(ids)
    assert set(ratings[:, 2]) == {1, 2, 3, 4, 5}


def test_the_world_says_that_it_is_not_movielens(world: Path) -> None:
    marker = json.loads((world / "SYNTHETIC.json").read_text())
    assert marker["synthetic"] is True
    assert "not MovieLens" in marker["notice"]
    assert (marker["seed"], marker["n_users"], marker["n_items"], marker["n_events"]) == (SEED, 943, 1682, 100_000)
    assert marker["span_days"] == 214
    assert "not MovieLens" in (world / "README").read_text(encoding="latin-1")


def test_a_user_rates_a_movie_once_and_after_its_release(ratings: np.ndarray, rows: np.ndarray, movies: Movies) -> None:
    assert len({(u, i) for u, i in ratings[:, :2].tolist()}) == len(ratings)
    assert np.array_equal(movies.item_id[rows], ratings[:, 1])
    assert (ratings[:, 3] >= movies.release_utc[rows]).all()


def test_people_arrive_over_the_span_and_some_return(ratings: np.ndarray, people: list[Person]) -> None:
    user, stamp = ratings[:, 0], ratings[:, 3]
    assert stamp.min() >= START_UTC
    assert stamp.max() < START_UTC + 215 * DAY_S
    same_user = user[1:] == user[:-1]
    gaps = np.diff(stamp)[same_user]
    assert gaps.min() >= 0
    assert 0.3 < (gaps == 0).mean() < 0.6  # many events share a second
    arrivals = np.array([person.arrival_utc for person in people])
    assert np.array_equal(stamp[np.r_[True, ~same_user]], arrivals)
    returned = len({u for u, gap in zip(user[1:][same_user], gaps, strict=True) if gap > DAY_S / 2}) / 943
    assert 0.2 < returned < 0.6
    cutoff = np.sort(stamp)[90_000]
    assert (arrivals[user[stamp > cutoff] - 1] > cutoff).mean() > 0.5  # most late events are of new users


def test_popularity_rises_after_release_and_fades(ratings: np.ndarray, rows: np.ndarray, movies: Movies) -> None:
    start, peak, old, ancient = age_factor(np.array([0, 30, 400, 4000]) * DAY_S)
    assert start < peak > old > ancient
    counts = np.bincount(rows, minlength=1682)
    expected = movies.popularity[[movies.bucket(int(t)) for t in ratings[::50, 3]]].sum(0)
    assert np.corrcoef(expected.argsort().argsort(), counts.argsort().argsort())[0, 1] > 0.75
    assert np.sort(counts)[::-1][:84].sum() > 0.2 * counts.sum()  # 5 % of the movies


def test_demographics_matter(world: Path, ratings: np.ndarray) -> None:
    """Genre shares of women and men, of young and old, differ far more than those of groups drawn at random."""
    users = rows_of(world, "users.dat")
    genres = {int(i): [GENRES.index(g) for g in names.split("|")] for i, _, names in rows_of(world, "movies.dat")}
    shares = np.zeros((len(users), len(GENRES)))
    for user, item in ratings[:, :2].tolist():
        shares[user - 1, genres[item]] += 1
    shares /= shares.sum(1, keepdims=True)

    def distance(group: np.ndarray) -> float:
        return float(np.abs(shares[group].mean(0) - shares[~group].mean(0)).sum())

    rng = np.random.default_rng(0)
    for group in (np.array([row[1] == "F" for row in users]), np.array([int(row[2]) >= 35 for row in users])):
        assert distance(group) > 1.3 * max(distance(rng.permutation(group)) for _ in range(50))


def test_recent_movies_tell_the_next_but_do_not_fix_it(ratings: np.ndarray, rows: np.ndarray, movies: Movies) -> None:
    same_user = ratings[1:, 0] == ratings[:-1, 0]
    cluster = movies.cluster[rows]
    follows = (cluster[1:] == cluster[:-1])[same_user].mean()
    assert 4 * (np.random.default_rng(0).permutation(cluster) == cluster).mean() < follows < 0.6
    pairs = np.unique(np.stack([rows[:-1], rows[1:]], 1)[same_user], axis=0, return_counts=True)[1]
    assert pairs.max() < 0.3 * np.bincount(rows).max()  # no movie that always brings the same one


def test_titles_and_genres_tell_of_taste(world: Path, movies: Movies) -> None:
    """Movies that share an invented name, or all their genres, are nearer in taste than two movies at random."""
    similarity = movies.factors @ movies.factors.T
    names: dict[str, list[int]] = {}
    kinds: dict[str, list[int]] = {}
    for row, (_, title, genres) in enumerate(rows_of(world, "movies.dat")):
        kinds.setdefault(genres, []).append(row)
        for word in set(re.findall(r"(?:of|in) (\w+)|^(\w+)'s", title)[:1]):
            names.setdefault("".join(word), []).append(row)

    def mean_pair(groups: list[list[int]]) -> float:
        total = sum(similarity[np.ix_(rows, rows)].sum() - len(rows) for rows in groups)
        return float(total / sum(len(rows) * (len(rows) - 1) for rows in groups))

    by_chance = mean_pair([list(range(len(similarity)))])
    assert mean_pair([*names.values()]) > by_chance + 0.3
    assert mean_pair([*kinds.values()]) > by_chance + 0.3


def test_ratings_follow_quality_taste_and_bias(
    ratings: np.ndarray, rows: np.ndarray, movies: Movies, people: list[Person]
) -> None:
    expected = []
    for (user, _, _, t), row in zip(ratings[::20].tolist(), rows[::20], strict=True):
        person = people[user - 1]
        taste = taste_at(person.taste, person.drift, t - person.arrival_utc)
        stars = (
            MEAN_STARS + person.bias + QUALITY_STARS * movies.quality[row] + TASTE_STARS * movies.factors[row] @ taste
        )
        expected.append(np.clip(stars, 1, 5))
    assert np.corrcoef(expected, ratings[::20, 2])[0, 1] > 0.5
    assert 3.3 < ratings[:, 2].mean() < 3.8


@pytest.mark.parametrize("size", [WorldSize(1, 40, 20), WorldSize(40, 60, 1200), WorldSize(20, 100, 1000)])
def test_a_tiny_or_dense_world_can_be_made(tmp_path: Path, size: WorldSize) -> None:
    generate_world(tmp_path / "world", size, seed=0)
    ratings = ratings_of(tmp_path / "world")
    assert len(ratings) == len({(u, i) for u, i in ratings[:, :2].tolist()}) == size.n_events
    assert np.bincount(ratings[:, 0])[1:].min() >= 20


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 100, 100), "at least 1 user"),
        ((10, 39, 200), "at least 40 movies"),
        ((100, 100, 1999), "need at least 2000"),
        ((100, 100, 5001), "at most 5000"),
    ],
)
def test_impossible_sizes(values: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        WorldSize(*values)


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed is -1"):
        generate_world(tmp_path / "world", SMALL, -1)
