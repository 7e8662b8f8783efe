"""Generates a synthetic world and writes it in ml-1m's layout, a block of users at a time.

Stage: data. In: a folder, a `WorldSize`, a seed. Out: `ratings.dat`, `movies.dat`, `users.dat` (Latin-1, `::`),
`README`, `SYNTHETIC.json` and `truth/`; the folder is replaced whole or not at all. Absent: reading them back, which
the reader of ml-1m does.

The same seed, size, generator version, numpy version and kind of machine give the same bytes. The block size never
matters: every user has a generator of their own, keyed by (seed, user).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from recsys.atomic_io import replacing_folder, write_json
from recsys.data.synthetic.behaviour import Events, live
from recsys.data.synthetic.movies import GENRES, Movies, make_movies
from recsys.data.synthetic.people import AGES, Person, make_counts, make_person, make_society
from recsys.data.synthetic.size import WorldSize
from recsys.data.synthetic.titles import make_titles
from recsys.data.synthetic.truth import Truth, Users, save_truth
from recsys.errors import ConfigError

GENERATOR_VERSION: Final = "1"  # raise it with any change that alters the bytes
BLOCK: Final = 256  # users whose lines are held in memory together
NOTICE: Final = (
    "This is a synthetic world made by recsys. It is not MovieLens: its people, movies, titles and ratings are "
    "invented, and no figure measured on it says anything about MovieLens."
)
README: Final = """{notice}

The files have the layout of MovieLens 1M, so that the same reader reads them (Latin-1, fields separated by "::"):

  ratings.dat   UserID::MovieID::Rating::Timestamp     {n_events} rows, grouped by user, 1 to 5 stars
  movies.dat    MovieID::Title (Year)::Genre|Genre     {n_items} rows
  users.dat     UserID::Gender::Age::Occupation::Zip   {n_users} rows, codes as in MovieLens 1M

SYNTHETIC.json says how the world was made (seed {seed}). truth/ holds what is hidden from every model.
"""

# Streams of random numbers; users follow from FIRST_USER on.
CATALOGUE, TITLES, SOCIETY, COUNTS, FIRST_USER = range(5)


def generate_world(
    folder: Path,
    size: WorldSize,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    block: int = BLOCK,
) -> None:
    """Write a world to `folder`, replacing what was there.

    `progress(events_done, n_events)` is called after every block of users. An interruption, or an error raised by
    `progress`, leaves the folder as it was. Raises ConfigError for a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be 0 or more.")
    movies = make_movies(_stream(seed, CATALOGUE), size)
    titles = make_titles(_stream(seed, TITLES), movies)
    counts = make_counts(_stream(seed, COUNTS), size)
    people: list[Person] = []
    with replacing_folder(folder) as beside:
        _write_movies(beside / "movies.dat", movies, titles)
        with (beside / "ratings.dat").open("w", encoding="latin-1", newline="\n") as ratings:
            done = 0
            lines: list[str] = []
            for user_id, (person, events) in enumerate(_lives(seed, size, movies, counts.tolist()), start=1):
                people.append(person)
                lines.append(_rating_lines(user_id, movies, events))
                done += len(events.movie)
                if len(lines) == block or user_id == size.n_users:
                    ratings.writelines(lines)
                    lines.clear()
                    if progress is not None:
                        progress(done, size.n_events)
        _write_users(beside / "users.dat", people)
        users = Users(
            taste=np.stack([p.taste for p in people]),
            drift=np.stack([p.drift for p in people]),
            bias=np.array([p.bias for p in people], np.float32),
            arrival_utc=np.array([p.arrival_utc for p in people], np.int64),
            n_events=counts,
        )
        save_truth(Truth(movies, users), beside)
        made = {**asdict(size), "span_days": size.days, "seed": seed}
        (beside / "README").write_text(README.format(notice=NOTICE, **made), encoding="latin-1")
        how = {"generator_version": GENERATOR_VERSION, "numpy": np.__version__, "notice": NOTICE, "synthetic": True}
        write_json(beside / "SYNTHETIC.json", {**made, **how})


def _stream(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number,))))


def _lives(seed: int, size: WorldSize, movies: Movies, counts: list[int]) -> Iterator[tuple[Person, Events]]:
    society = make_society(_stream(seed, SOCIETY))
    for row, n in enumerate(counts):
        rng = _stream(seed, FIRST_USER + row)
        person = make_person(rng, society, size)
        yield person, live(rng, movies, person, n)


def _rating_lines(user_id: int, movies: Movies, events: Events) -> str:
    item_ids = movies.item_id[events.movie].tolist()
    rows = zip(item_ids, events.rating.tolist(), events.timestamp.tolist(), strict=True)
    return "".join([f"{user_id}::{i}::{r}::{t}\n" for i, r, t in rows])


def _write_movies(path: Path, movies: Movies, titles: list[str]) -> None:
    with path.open("w", encoding="latin-1", newline="\n") as out:
        for item_id, title, has in zip(movies.item_id.tolist(), titles, movies.genres, strict=True):
            out.write(f"{item_id}::{title}::{'|'.join(GENRES[g] for g in np.flatnonzero(has))}\n")


def _write_users(path: Path, people: list[Person]) -> None:
    with path.open("w", encoding="latin-1", newline="\n") as out:
        for user_id, p in enumerate(people, start=1):
            out.write(f"{user_id}::{'FM'[p.gender]}::{AGES[p.age]}::{p.occupation}::{p.zip_code}\n")
