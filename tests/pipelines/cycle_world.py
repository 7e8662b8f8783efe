"""A world whose right answers are known by arithmetic, in ml-1m's layout.

Two clusters of 11 items. Of three users in a row, one lives in cluster A and two in cluster B. Everybody rates all
items of their cluster, one every six hours, going round in the order of ids from a place of their own. Hence:
  - after a first event at most 10 items of a user's cluster are left, so who knows the cluster has HR@10 = 1;
  - every item of B is more popular than every item of A, so popularity shows B to everybody: all hits for warm users
    of B, none for users of A;
  - who knows the order as well puts the next item on top: NDCG@10 = 1.
"""

from pathlib import Path

CLUSTER = 11
USERS = 135
SILENT = (900, 901)  # in users.dat, without ratings
START, HOUR, DAY = 1_000_000_000 // 86_400 * 86_400, 3_600, 86_400
ITEMS = range(1, 2 * CLUSTER + 1)  # 1 to 11 are A, 12 to 22 are B


def in_a(user: int) -> bool:
    return user % 3 == 0


def life(user: int) -> list[tuple[int, int, int, int]]:
    """(user, item, stars, moment), oldest first."""
    first = 1 if in_a(user) else CLUSTER + 1
    start = START + user * DAY + (user * 37 % 24) * 60
    place = user * 5 % CLUSTER
    return [
        (user, first + (place + step) % CLUSTER, 3 + (user + step) % 3, start + step * 6 * HOUR)
        for step in range(CLUSTER)
    ]


EVENTS = [event for user in range(1, USERS + 1) for event in life(user)]


def write_ml_1m(folder: Path) -> Path:
    """With a users file that names two users who never rated."""
    folder.mkdir()
    (folder / "ratings.dat").write_text("".join(f"{u}::{m}::{r}::{t}\n" for u, m, r, t in EVENTS))
    genre = ("Action", "Comedy")
    (folder / "movies.dat").write_text("".join(f"{m}::Film {m} ({1980 + m})::{genre[m > CLUSTER]}\n" for m in ITEMS))
    users = [*range(1, USERS + 1), *SILENT]
    (folder / "users.dat").write_text("".join(f"{u}::{'FM'[u % 2]}::25::{u % 21}::00000\n" for u in users))
    return folder
