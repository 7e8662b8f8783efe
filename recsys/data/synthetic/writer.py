"""Generates a synthetic world and writes it in ml-1m's layout.

The same seed, size, generator version, numpy version and kind of machine give the same bytes. Every user has a
generator of their own, keyed by (seed, user).
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from recsys.atomic_io import replacing_folder, write_json
from recsys.data.synthetic.movies import GENRES, Movies, make_movies, make_titles
from recsys.data.synthetic.people import AGES, Events, Person, live, make_counts, make_person, make_society
from recsys.data.synthetic.size import WorldSize
from recsys.errors import ConfigError

GENERATOR_VERSION: Final = "1"  # raise it with any change that alters the bytes
NOTICE: Final = (
    "This is a synthetic world made by recsys. It is not MovieLens: its people, movies, titles and ratings are "
    "invented, and no figure measured on it says anything about MovieLens."
)
README: Final = """{notice}

The files have the layout of MovieLens 1M, so that the same reader reads them (Latin-1, fields separated by "::"):

  ratings.dat   UserID::MovieID::Rating::Timestamp     {n_events} rows, grouped by user, 1 to 5 stars
  movies.dat    MovieID::Title (Year)::Genre|Genre     {n_items} rows
  users.dat     UserID::Gender::Age::Occupation::Zip   {n_users} rows, codes as in MovieLens 1M

SYNTHETIC.json says how the world was made (seed {seed}).
"""

# Streams of random numbers; users follow from FIRST_USER on.
CATALOGUE, TITLES, SOCIETY, COUNTS, FIRST_USER = range(5)


def generate_world(folder: Path, size: WorldSize, seed: int) -> None:
    """Write a world to `folder`, replacing what was there. Raises ConfigError for a negative seed."""
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be 0 or more.")
    movies = make_movies(stream(seed, CATALOGUE), size)
    titles = make_titles(stream(seed, TITLES), movies)
    movie_lines = [
        f"{item_id}::{title}::{'|'.join(GENRES[g] for g in np.flatnonzero(has))}\n"
        for item_id, title, has in zip(movies.item_id.tolist(), titles, movies.genres, strict=True)
    ]
    user_lines = []
    made = {**asdict(size), "span_days": size.days, "seed": seed}
    how = {"generator_version": GENERATOR_VERSION, "numpy": np.__version__, "notice": NOTICE, "synthetic": True}
    with replacing_folder(folder) as beside:
        with (beside / "ratings.dat").open("w", encoding="latin-1") as ratings:
            for user_id, (p, events) in enumerate(lives(seed, size, movies), start=1):
                user_lines.append(f"{user_id}::{'FM'[p.gender]}::{AGES[p.age]}::{p.occupation}::{p.zip_code}\n")
                items = movies.item_id[events.movie].tolist()
                rows = zip(items, events.rating.tolist(), events.timestamp.tolist(), strict=True)
                ratings.writelines(f"{user_id}::{i}::{stars}::{t}\n" for i, stars, t in rows)
        (beside / "movies.dat").write_text("".join(movie_lines), encoding="latin-1")
        (beside / "users.dat").write_text("".join(user_lines), encoding="latin-1")
        (beside / "README").write_text(README.format(notice=NOTICE, **made), encoding="latin-1")
        write_json(beside / "SYNTHETIC.json", {**made, **how})


def stream(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number,))))


def lives(seed: int, size: WorldSize, movies: Movies) -> Iterator[tuple[Person, Events]]:
    """Each user in turn, and all that they do. What a `Person` holds is hidden from every model."""
    society = make_society(stream(seed, SOCIETY))
    for row, n in enumerate(make_counts(stream(seed, COUNTS), size).tolist()):
        rng = stream(seed, FIRST_USER + row)
        person = make_person(rng, society, size)
        yield person, live(rng, movies, person, n)
