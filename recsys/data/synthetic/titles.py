"""Titles of the synthetic movies: made-up, unique, Latin-1, with words that hint at genre and cluster.

Stage: data. In: a random generator and `Movies`. Out: one title a movie, year included. Absent: real titles; any
likeness to one is chance.
"""

import re
from datetime import UTC, datetime
from typing import Final

import numpy as np

from recsys.data.synthetic.movies import GENRES, Movies

WORDS: Final = {
    "Action": "Chase Siege Hammer Fury Convoy Showdown Ambush Ricochet Overdrive Strike",
    "Adventure": "Voyage Compass Island Caravan Expedition Treasure Horizon Jungle Atlas Summit",
    "Animation": "Puppet Paintbox Teapot Scarecrow Lantern Snowman Marionette Crayon Pinwheel Bumblebee",
    "Children's": "Puppy Treehouse Marmalade Kitten Sandbox Lollipop Pony Holiday Birthday Rabbit",
    "Comedy": "Wedding Neighbour Mishap Landlord Cousin Lottery Butler Vacation Sandwich Uproar",
    "Crime": "Heist Alibi Racket Informer Verdict Safecracker Witness Payoff Precinct Forger",
    "Documentary": "Portrait Archive Chronicle Glacier Orchestra Harvest Factory Migration Workshop Census",
    "Drama": "Daughter Winter Letter Orchard Silence Father Promise River Inheritance Sorrow",
    "Fantasy": "Dragon Wizard Amulet Enchantment Unicorn Prophecy Labyrinth Griffin Spell Oracle",
    "Film-Noir": "Shadow Alley Cigarette Nightfall Blonde Pier Fog Stranger Neon Backroom",
    "Horror": "Crypt Curse Cellar Fangs Asylum Seance Graveyard Howl Phantom Swamp",
    "Musical": "Melody Rhapsody Chorus Tango Footlights Serenade Waltz Encore Vaudeville Refrain",
    "Mystery": "Cipher Clue Mansion Riddle Keyhole Vanishing Enigma Lighthouse Footprint Secret",
    "Romance": "Kiss Heart Moonlight Sweetheart Rose Rendezvous Springtime Valentine Embrace Honeymoon",
    "Sci-Fi": "Orbit Android Nebula Starship Galaxy Quantum Reactor Colony Satellite Machine",
    "Thriller": "Deadline Pursuit Conspiracy Hostage Sniper Blackmail Paranoia Wiretap Countdown Trap",
    "War": "Battalion Trench Armistice Regiment Bombardier Frontline Bunker Brigade Ceasefire Squadron",
    "Western": "Saddle Canyon Stagecoach Gunslinger Prairie Ranch Outlaw Mesa Sheriff Mustang",
}
PLAIN: Final = "Last Long Golden Hidden Broken Quiet Distant Second Burning Little Blue Wild Empty Final Lost"
ONSETS: Final = "b br d dr f fl gl j l m n r s t th tr v w"  # too few for common rude words
VOWELS: Final = "a e i o u a e i o é è ö ü á ó ø"  # some accents, all in Latin-1
CODAS: Final = ("", "", "n", "r", "l", "s", "nd", "th", "ñ")
PART: Final = ("", "II", "III", "IV")
NAMES_PER_CLUSTER: Final = 6


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
        titles[row] = f"{_article_last(text)} ({year_of(int(movies.release_utc[row]))})"
    return titles


def year_of(release_utc: int) -> int:
    """Calendar year (UTC) of a release."""
    return datetime.fromtimestamp(release_utc, UTC).year


def _base(rng: np.random.Generator, names: list[str], genres: np.ndarray) -> str:
    """A title from one of five moulds; a noun of one of the movie's genres is in each, a cluster's name in most."""
    noun = str(rng.choice(WORDS[GENRES[int(rng.choice(genres))]].split()))
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


def _article_last(text: str) -> str:
    return re.sub(r"^(The|A) (.*)$", r"\2, \1", text)


def _name(rng: np.random.Generator) -> str:
    """An invented name of two or three syllables."""
    syllables = int(rng.integers(2, 4))
    pairs = zip(rng.choice(ONSETS.split(), syllables), rng.choice(VOWELS.split(), syllables), strict=True)
    text = "".join(onset + vowel for onset, vowel in pairs)
    return (text + CODAS[rng.integers(len(CODAS))]).capitalize()
