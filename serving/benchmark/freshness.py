"""From an accepted rating to a list that holds it: users rate the first item of their list and ask again at once."""

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import RecsysError
from recsys.events import EventTable, sqlite_url
from serving.benchmark.load import Percentiles, Pool
from serving.benchmark.service import recommendation_path

TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Freshness:
    """post: a rating, until it is accepted. fresh: from then until the next list is there. stale: lists that still held
    the rated item. unanswered: lists that did not come, or were made without the user's state."""

    post: Percentiles
    fresh: Percentiles
    stale: int
    unanswered: int


def scratch_events(folder: Path, own: EventTable) -> str:
    """URL of an empty event table in `folder` that counts on from the service's own: a service that uses it takes a
    benchmark's ratings for its latest events, and they are gone with the folder."""
    table = EventTable(sqlite_url(folder / "events.db"))
    table.safe_seq()  # makes the table
    table.close()
    with closing(sqlite3.connect(folder / "events.db")) as connection, connection:
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)", (own.safe_seq(),))
    return table.url.render_as_string(hide_password=False)


async def measure(url: str, user_ids: list[int], *, n: int, api_key: str | None) -> Freshness:
    """`n` ratings, one after the other, of the users in turn. Raises RecsysError where one is not accepted."""
    key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    post_ms, fresh_ms, stale, unanswered = list[float](), list[float](), 0, 0
    # What is accepted over one connection is asked for over another.
    with closing(Pool(url)) as posts, closing(Pool(url)) as lists:
        for user_id in (user_ids[i % len(user_ids)] for i in range(n)):
            if before := await _list(lists, user_id):
                body = json.dumps({"user_id": user_id, "item_id": before[0], "rating": 4.0}).encode()
                begun = time.monotonic()
                response = await posts.ask("/v1/events", TIMEOUT_S, method="POST", body=body, headers=key)
                accepted = time.monotonic()
                if response.status != 201:
                    reason = f"{response.status} {response.body[:200].decode()}"
                    raise RecsysError(f"{url} did not accept a rating: {reason}")
                after = await _list(lists, user_id)
                post_ms.append((accepted - begun) * 1e3)
                if after:
                    fresh_ms.append((time.monotonic() - accepted) * 1e3)
                    stale += before[0] in after
            unanswered += not before or not after
    post, fresh = Percentiles.of(post_ms), Percentiles.of(fresh_ms)
    if post is None or fresh is None:
        raise RecsysError(f"{url} made no list from a user's state; {unanswered} were asked for.")
    return Freshness(post, fresh, stale, unanswered)


async def _list(pool: Pool, user_id: int) -> list[int]:
    """Empty where there is no list, or one that was made without the user's state."""
    response = await pool.ask(recommendation_path(user_id), TIMEOUT_S)
    answer = json.loads(response.body)
    made = response.status == 200 and "user_state" not in answer["degraded"]
    return [int(item["item_id"]) for item in answer["items"]] if made else []
