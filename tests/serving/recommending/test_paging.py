"""Pages: together they are the list, whatever happened meanwhile; a cursor that is not ours is refused."""

import base64
import json
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from recsys.limits import LARGEST_ID
from serving.http.problems import ProblemError
from serving.http.requests import LONGEST_CURSOR
from serving.model_lifecycle.served_model import ServedModel, item_facts
from serving.recommending import paging
from serving.recommending.paging import LONGEST_LIST, ROW, Header, PageCursor, decode, encode, key_of
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.serving.conftest import service_of
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import connected, recommendations
from tests.serving.serving_world import ServingWorld

KEY = key_of("tiny-world", None)
PATH = "/v1/users/7/recommendations"
HEADER = {"user_id": 7, "version": 3, "bundle_id": "bundle", "cold_start": False, "degraded": []}
HEADER |= {"retriever_names": ["two_tower", "ease"], "shown": 10}


def cursor_of(n: int, **more: Any) -> PageCursor:
    rows = np.frombuffer(np.random.default_rng(n).bytes(n * ROW.itemsize), ROW)
    return PageCursor(Header.model_validate({**HEADER, "n": n, **more}), rows)


def forged(header: bytes) -> str:
    """With a right hash, which anybody can make without an API key."""
    content = paging.LENGTH.pack(len(header)) + header
    return base64.urlsafe_b64encode(content + paging._hash(content, KEY)).rstrip(b"=").decode()


def pages(client: httpx.Client, k: int, user_id: int = 7, **options: Any) -> list[dict[str, Any]]:
    out = [recommendations(client, user_id, k=k, paginate=True, **options)]
    while out[-1]["next_cursor"] is not None:
        out.append(recommendations(client, user_id, k=k, cursor=out[-1]["next_cursor"]))
    return out


def items(shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for page in shown for item in page["items"]]


def test_a_cursor_gives_back_what_went_in_and_stays_short() -> None:
    for n in (0, 1, 17, LONGEST_LIST):
        back = decode(encode(cursor_of(n), KEY), KEY)
        assert (back.header, back.rows.tobytes()) == (cursor_of(n).header, cursor_of(n).rows.tobytes())
    texts = {"bundle_id": "b" * 100, "degraded": ["user_state", "ranking", "retrieval"]}
    longest = cursor_of(LONGEST_LIST, user_id=LARGEST_ID, retriever_names=["s" * 20] * 10, **texts)
    assert len(encode(longest, KEY)) < LONGEST_CURSOR


def test_every_damage_is_found() -> None:
    cursor = encode(cursor_of(2), KEY)
    changed = [
        cursor[:place] + ("B" if letter == "A" else "A") + cursor[place + 1 :] for place, letter in enumerate(cursor)
    ]
    for broken in (*changed, "", "A", "=", "é", "\x00", cursor[:-1], cursor + "A", cursor + "====", " " + cursor):
        with pytest.raises(ProblemError, match="damaged"):
            decode(broken, KEY)
    secret = encode(cursor_of(3), key_of("ml-1m", "a secret"))
    for other in (key_of("ml-1m", None), key_of("ml-1m", "another"), key_of("ml-100k", "a secret")):
        with pytest.raises(ProblemError, match="damaged"):
            decode(secret, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2**70},
        {"shown": 10**6},
        {"user_id": -1},
        {"bundle_id": "x" * 1_000},
        {"retriever_names": ["s"] * 40},
        {"n": 4},
        {"more": 1},
    ],
)
def test_a_forged_header_is_bounded(changes: dict[str, object]) -> None:
    for header in (json.dumps({**HEADER, "n": 0, **changes}).encode(), b"{}", b"\xff", b""):
        with pytest.raises(ProblemError, match="damaged"):
            decode(forged(header), KEY)


@pytest.mark.parametrize("options", [{}, {"genre": "Comedy", "min_ratings": 2}, {"diversity": 0.6}])
def test_pages_together_are_the_list(client: httpx.Client, service: Service, options: dict[str, object]) -> None:
    shown = pages(client, 9, **options)
    whole = recommendations(client, k=100, paginate=True, **options)
    assert items(shown) == whole["items"]
    assert whole["next_cursor"] is None
    assert [len(page["items"]) for page in shown[:-1]] == [9] * (len(shown) - 1)
    assert [item["rank"] for item in items(shown)] == list(range(1, len(items(shown)) + 1))
    for page in shown[1:]:
        assert (page["user_id"], page["model"], page["cold_start"]) == (7, shown[0]["model"], False)
    assert service.metrics.as_dict()["pages"] == len(shown) - 1
    second = recommendations(client, k=20, cursor=shown[0]["next_cursor"])
    assert second["items"] == whole["items"][9:29], "the page size may change"


def test_a_list_ends_after_its_bound(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.recommending.answers.LONGEST_LIST", 25)
    assert len(items(pages(client, 10))) == 25
    assert recommendations(client)["next_cursor"] is None, "without paginate"


def test_what_was_rated_meanwhile_is_left_out(client: httpx.Client) -> None:
    whole = [item["item_id"] for item in items(pages(client, 10, 22))]
    first = recommendations(client, 22, k=10, paginate=True)
    for item in (whole[10], whole[25]):
        assert client.post("/v1/events", json={"user_id": 22, "item_id": item, "rating": 5}).status_code == 201
    second = recommendations(client, 22, k=10, cursor=first["next_cursor"])
    third = recommendations(client, 22, k=10, cursor=second["next_cursor"])
    left = [item for item in whole if item not in (whole[10], whole[25])]
    assert [item["item_id"] for item in second["items"] + third["items"]] == left[10:30]
    assert [item["rank"] for item in second["items"] + third["items"]] == list(range(11, 31))


def test_another_worker_with_another_model_goes_on(
    client: httpx.Client, settings: ServiceSettings, store: InMemoryStore, model: ServedModel, world: ServingWorld
) -> None:
    """The next model lacks two items; the list stays what it was without them."""
    whole = items(pages(client, 10))
    first = recommendations(client, paginate=True)
    gone = {whole[12]["item_id"], whole[13]["item_id"]}
    kept = ~np.isin(model.catalogue.item_ids, list(gone))
    catalogue = replace(
        model.catalogue,
        item_ids=model.catalogue.item_ids[kept],
        titles=tuple(t for t, k in zip(model.catalogue.titles, kept, strict=True) if k),
        years=model.catalogue.years[kept],
        genres=model.catalogue.genres[kept],
    )

    class Smaller(ServedModel):
        @property
        def catalogue(self):  # type: ignore[no-untyped-def]
            return catalogue

    new = Smaller(**{**vars(model), "version": 2, "facts": item_facts(catalogue)})
    with connected(settings, service_of(settings, store, new, world)) as other:
        second = recommendations(other, cursor=first["next_cursor"])
    assert second["model"] == first["model"]
    expected = [item for item in whole if item["item_id"] not in gone][10:20]
    assert [(i["item_id"], i["title"]) for i in second["items"]] == [(i["item_id"], i["title"]) for i in expected]


def test_pages_of_a_history_in_the_body(client: httpx.Client) -> None:
    history = [{"item_id": 5, "rating": 4.0}, {"item_id": 9, "rating": 5.0}]
    first = client.post("/v1/recommendations", json={"history": history, "k": 4, "paginate": True}).json()
    whole = client.post("/v1/recommendations", json={"history": history, "k": 12}).json()["items"]
    assert first["items"] == whole[:4]
    rated = [*history, {"item_id": whole[5]["item_id"], "rating": 3.0}]
    second = client.post("/v1/recommendations", json={"cursor": first["next_cursor"], "k": 4, "history": rated}).json()
    assert [i["item_id"] for i in second["items"]] == [i["item_id"] for i in [whole[4], *whole[6:9]]]


def test_cursors_of_others_are_refused_and_one_comes_alone(client: httpx.Client) -> None:
    cursor = recommendations(client, paginate=True)["next_cursor"]
    for response in (
        client.get("/v1/users/8/recommendations", params={"cursor": cursor}),
        client.post("/v1/recommendations", json={"cursor": cursor}),
        client.get(PATH, params={"cursor": "nonsense"}),
    ):
        assert response.status_code == 422
        assert response.json()["type"] == "urn:recsys:problem:invalid-cursor"
    response = client.get(PATH, params={"cursor": cursor, "genre": "Drama", "explain": True})
    assert "leave out explain, genre" in response.json()["detail"]
    response = client.post("/v1/recommendations", json={"cursor": cursor, "filters": {"min_ratings": 1}})
    assert "leave out filters" in response.json()["detail"]
