"""The synthetic world: its layout, its determinism, and the truths that a recommender should be able to find."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from recsys.atomic_io import fingerprint_files
from recsys.data.synthetic import LIKE_ML_1M, LIKE_ML_100K, Truth, WorldSize, generate_world, load_truth
from recsys.data.synthetic.movies import GENRES, age_factor, make_movies
from recsys.data.synthetic.people import AGES, make_counts
from recsys.data.synthetic.size import DAY_S, START_UTC
from recsys.errors import ConfigError, MissingArtefactError

SMALL = WorldSize(n_users=60, n_items=200, n_events=3000)
FILES = ("README", "SYNTHETIC.json", "movies.dat", "ratings.dat", "users.dat", "truth/movies.npz", "truth/users.npz")


def fingerprint(folder: Path) -> str:
    return fingerprint_files(folder / name for name in FILES)


def ratings_of(folder: Path) -> np.ndarray:
    """(n, 4) int64: user id, movie id, stars, seconds, in the order of the file."""
    lines = (folder / "ratings.dat").read_text(encoding="latin-1").splitlines()
    return np.array([[int(field) for field in line.split("::")] for line in lines])


def rows_of(folder: Path, name: str) -> list[list[str]]:
    return [line.split("::") for line in (folder / name).read_text(encoding="latin-1").splitlines()]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default world, ml-100k's size."""
    folder = tmp_path_factory.mktemp("synthetic") / "world"
    generate_world(folder, LIKE_ML_100K, seed=7)
    return folder


@pytest.fixture(scope="module")
def ratings(world: Path) -> np.ndarray:
    return ratings_of(world)


@pytest.fixture(scope="module")
def truth(world: Path) -> Truth:
    return load_truth(world)


def test_a_seed_gives_the_same_bytes_whatever_the_block(tmp_path: Path) -> None:
    for name, block in (("a", 256), ("b", 256), ("c", 1), ("d", 7)):
        generate_world(tmp_path / name, SMALL, seed=3, block=block)
    assert len({fingerprint(tmp_path / name) for name in "abcd"}) == 1
    assert sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file()) == sorted(
        FILES
    )


def test_another_seed_gives_another_world(tmp_path: Path) -> None:
    for seed in (3, 4):
        generate_world(tmp_path / str(seed), SMALL, seed=seed)
    for name in ("ratings.dat", "movies.dat", "users.dat"):
        assert (tmp_path / "3" / name).read_bytes() != (tmp_path / "4" / name).read_bytes()


def test_sizes_are_exact(world: Path, ratings: np.ndarray, truth: Truth) -> None:
    assert len(ratings) == 100_000
    assert len(rows_of(world, "movies.dat")) == 1682
    assert [int(r[0]) for r in rows_of(world, "users.dat")] == list(range(1, 944))
    counts = np.bincount(ratings[:, 0], minlength=944)[1:]
    assert counts.min() >= 20
    assert np.array_equal(counts, truth.users.n_events)
    assert counts.max() > 5 * np.median(counts)  # heavy-tailed


def test_layout(world: Path, ratings: np.ndarray) -> None:
    movies = rows_of(world, "movies.dat")
    assert all(len(row) == 3 for row in movies)
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
    assert (marker["seed"], marker["n_users"], marker["n_items"], marker["n_events"]) == (7, 943, 1682, 100_000)
    assert marker["span_days"] == 214
    assert "not MovieLens" in (world / "README").read_text(encoding="latin-1")


def test_a_user_rates_a_movie_once_and_after_its_release(ratings: np.ndarray, truth: Truth) -> None:
    assert len({(u, i) for u, i in ratings[:, :2].tolist()}) == len(ratings)
    rows = truth.movie_rows(ratings[:, 1])
    assert np.array_equal(truth.movies.item_id[rows], ratings[:, 1])
    assert (ratings[:, 3] >= truth.movies.release_utc[rows]).all()


def test_time(ratings: np.ndarray, truth: Truth) -> None:
    user, stamp = ratings[:, 0], ratings[:, 3]
    assert stamp.min() >= START_UTC
    assert stamp.max() < START_UTC + 215 * DAY_S
    same_user = user[1:] == user[:-1]
    gaps = np.diff(stamp)[same_user]
    assert gaps.min() >= 0
    assert 0.3 < (gaps == 0).mean() < 0.6  # many events share a second
    firsts = np.flatnonzero(np.concatenate([[True], ~same_user]))
    assert np.array_equal(stamp[firsts], truth.users.arrival_utc)
    returned = len({u for u, gap in zip(user[1:][same_user], gaps, strict=True) if gap > DAY_S / 2}) / 943
    assert 0.2 < returned < 0.6  # some return, days or weeks later
    cutoff = np.sort(stamp)[90_000]
    late = stamp > cutoff
    assert (truth.users.arrival_utc[user[late] - 1] > cutoff).mean() > 0.5  # most late events are of new users


def test_popularity_rises_after_release_and_fades() -> None:
    days = np.array([0, 30, 400, 4000])
    start, peak, old, ancient = age_factor(days * DAY_S)
    assert start < peak > old > ancient
    movies = make_movies(np.random.default_rng(0), LIKE_ML_100K)
    new = int(np.argmax(movies.release_utc))
    first = np.flatnonzero(movies.popularity[:, new])[0]
    assert movies.bucket(int(movies.release_utc[new])) == first - 1  # never before its release
    assert movies.bucket(0) == 0
    assert movies.bucket(2**40) == movies.n_buckets - 1


def test_counts_follow_the_true_popularity(ratings: np.ndarray, truth: Truth) -> None:
    m = truth.movies
    counts = np.bincount(truth.movie_rows(ratings[:, 1]), minlength=1682)
    expected = m.popularity[[m.bucket(int(t)) for t in ratings[::50, 3]]].sum(0)
    assert rank_correlation(expected, counts) > 0.75
    top = np.sort(counts)[::-1]
    assert top[:84].sum() > 0.2 * counts.sum()  # 5 % of the movies


def test_counts_of_new_movies_rise_and_fade(ratings: np.ndarray, truth: Truth) -> None:
    """Events a day in the first week, weeks two to six and days 84 to 126, as means of each new movie's shares."""
    m = truth.movies
    rows = truth.movie_rows(ratings[:, 1])
    age = (ratings[:, 3] - m.release_utc[rows]) / DAY_S
    shares = []
    for new in np.flatnonzero((m.release_utc >= START_UTC) & (m.release_utc < START_UTC + 88 * DAY_S)):
        ages = age[(rows == new) & (age < 126)]
        if len(ages) >= 20:
            shares.append(np.histogram(ages, [0, 7, 14, 42, 84, 126])[0] / len(ages))
    assert len(shares) >= 10
    week, _, peak, _, late = np.mean(shares, axis=0) / [7, 7, 28, 42, 42]
    assert week < 0.85 * peak
    assert late < 0.75 * peak


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
        by_chance = max(distance(rng.permutation(group)) for _ in range(50))
        assert distance(group) > 1.3 * by_chance


def test_recent_movies_tell_the_next_but_do_not_fix_it(ratings: np.ndarray, truth: Truth) -> None:
    m = truth.movies
    rows = truth.movie_rows(ratings[:, 1])
    same_user = ratings[1:, 0] == ratings[:-1, 0]
    follows = (m.cluster[rows[1:]] == m.cluster[rows[:-1]])[same_user].mean()
    by_chance = (m.cluster[np.random.default_rng(0).permutation(rows)] == m.cluster[rows]).mean()
    assert follows > 4 * by_chance
    assert follows < 0.6
    pairs = np.unique(np.stack([rows[:-1], rows[1:]], 1)[same_user], axis=0, return_counts=True)[1]
    assert pairs.max() < 0.3 * np.bincount(rows).max()  # no movie that always brings the same one


def test_titles_and_genres_tell_of_taste(world: Path, truth: Truth) -> None:
    """Movies that share an invented name, or all their genres, are nearer in taste than two movies at random."""
    factors = truth.movies.factors
    movies = rows_of(world, "movies.dat")
    similarity = factors @ factors.T
    names: dict[str, list[int]] = {}
    kinds: dict[str, list[int]] = {}
    for row, (_, title, genres) in enumerate(movies):
        kinds.setdefault(genres, []).append(row)
        for word in set(re.findall(r"(?:of|in) (\w+)|^(\w+)'s", title)[:1]):
            names.setdefault("".join(word), []).append(row)

    def mean_pair(groups: dict[str, list[int]]) -> float:
        total = pairs = 0.0
        for rows in groups.values():
            total += similarity[np.ix_(rows, rows)].sum() - len(rows)
            pairs += len(rows) * (len(rows) - 1)
        return total / pairs

    by_chance = (similarity.sum() - len(movies)) / (len(movies) * (len(movies) - 1))
    assert mean_pair(names) > by_chance + 0.3
    assert mean_pair(kinds) > by_chance + 0.3


def test_ratings_follow_quality_taste_and_bias(ratings: np.ndarray, truth: Truth) -> None:
    some = ratings[::20]
    rows = truth.movie_rows(some[:, 1])
    expected = [truth.expected_stars(int(u) - 1, int(t))[row] for (u, _, _, t), row in zip(some, rows, strict=True)]
    assert np.corrcoef(expected, some[:, 2])[0, 1] > 0.5
    assert 3.3 < ratings[:, 2].mean() < 3.8


def test_the_truth_ranks_the_next_movie_far_above_popularity(ratings: np.ndarray, truth: Truth) -> None:
    """Hits in the first ten of 1682, strictly before the event: the truth with sequences > without > popularity."""
    cutoff = np.sort(ratings[:, 3])[90_000]
    rows = truth.movie_rows(ratings[:, 1])
    popular = np.bincount(rows[ratings[:, 3] <= cutoff], minlength=1682).astype(float)
    late = np.flatnonzero(ratings[:, 3] > cutoff)
    hits = np.zeros(3)
    for at in np.random.default_rng(0).choice(late, 1000, replace=False):
        user, _, _, t = ratings[at].tolist()
        history = rows[(ratings[:, 0] == user) & (ratings[:, 3] < t)]
        for column, chances in enumerate(
            (
                truth.next_chances(user - 1, t, history),
                truth.next_chances(user - 1, t, history, theme_share=0),
                popular,
            )
        ):
            if column < 2:
                assert chances.sum() == pytest.approx(1)
                assert (chances[history] == 0).all()
            allowed = chances.copy()
            allowed[history] = -1
            hits[column] += (allowed > allowed[rows[at]]).sum() < 10
    assert hits[0] > 1.7 * hits[1]
    assert hits[1] > 1.1 * hits[2]
    assert hits[2] > 30


def test_counts_at_the_limits() -> None:
    rng = np.random.default_rng(0)
    assert make_counts(rng, WorldSize(5, 40, 100)).tolist() == [20] * 5
    full = make_counts(rng, WorldSize(200, 40, 4000))
    assert full.tolist() == [20] * 200
    dense = make_counts(rng, WorldSize(200, 100, 10_000))
    assert (dense.sum(), dense.max()) == (10_000, 66)
    assert make_counts(rng, LIKE_ML_1M).sum() == 1_000_000


@pytest.mark.parametrize("size", [WorldSize(1, 40, 20), WorldSize(40, 60, 1200, span_days=7300)])
def test_a_tiny_or_dense_world_can_be_made(tmp_path: Path, size: WorldSize) -> None:
    generate_world(tmp_path / "world", size, seed=0)
    ratings = ratings_of(tmp_path / "world")
    assert len(ratings) == size.n_events
    assert len({(u, i) for u, i in ratings[:, :2].tolist()}) == size.n_events


def test_progress_and_an_interruption(tmp_path: Path) -> None:
    folder = tmp_path / "world"
    calls: list[tuple[int, int]] = []
    generate_world(folder, SMALL, 1, lambda done, of: calls.append((done, of)), block=25)
    assert len(calls) == 3
    assert calls[-1] == (3000, 3000)
    before = fingerprint(folder)

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_world(folder, SMALL, 2, interrupt, block=25)
    assert fingerprint(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["world"]  # nothing half-written beside it


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 100, 100), "at least 1 user"),
        ((10, 39, 200), "at least 40 movies"),
        ((100, 100, 1999), "each need 2000"),
        ((100, 100, 5001), "at most 5000"),
        ((100, 100, 2000, 29), "30..7300"),
        ((100, 100, 2000, 7301), "30..7300"),
    ],
)
def test_impossible_sizes(values: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        WorldSize(*values)


def test_other_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed is -1"):
        generate_world(tmp_path / "world", SMALL, -1)
    with pytest.raises(MissingArtefactError, match="not a synthetic world"):
        load_truth(tmp_path)
