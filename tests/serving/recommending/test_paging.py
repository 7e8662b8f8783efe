"""Pages: together they are the list, whatever happened meanwhile; a cursor that is not ours is refused."""

import base64
import json
from dataclasses import replace

import httpx
import numpy as np
import pytest

from recsys.errors import StoreError
from recsys.limits import LARGEST_ID
from serving.http.problems import ProblemError
from serving.http.requests import LONGEST_CURSOR
from serving.model_lifecycle.served_model import ServedModel, item_facts
from serving.recommending import paging
from serving.recommending.paging import LONGEST_LIST, Header, PageCursor, decode, encode, key_of
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.serving.conftest import service_of
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import connected
from tests.serving.serving_world import ServingWorld

KEY = key_of("tiny-world", None)


def cursor_of(n: int, **more: object) -> PageCursor:
    header = {
        "user_id": 7,
        "version": 3,
        "bundle_id": "bundle",
        "cold_start": False,
        "degraded": [],
        "retriever_names": ["two_tower", "ease"],
        "shown": 10,
        "n": n,
    }
    rng = np.random.default_rng(n)
    floats = rng.normal(size=(3, n)).astype(np.float32)
    return PageCursor(
        Header.model_validate({**header, **more}),
        rng.integers(0, 2**62, n),
        floats[0],
        floats[1],
        np.full(n, np.nan, dtype=np.float32),
        rng.integers(0, 2**32, n).astype(np.uint32),
    )


def same(a: PageCursor, b: PageCursor) -> bool:
    columns = ("item_ids", "scores", "watch", "like", "retrievers")
    return a.header == b.header and all(getattr(a, c).tobytes() == getattr(b, c).tobytes() for c in columns)


def pages(client: httpx.Client, user_id: int, k: int, **asked: object) -> list[dict[str, object]]:
    path = f"/v1/users/{user_id}/recommendations"
    out = [client.get(path, params={"k": k, "paginate": True, **asked}).json()]
    while out[-1]["next_cursor"] is not None:
        response = client.get(path, params={"k": k, "cursor": out[-1]["next_cursor"]})
        assert response.status_code == 200, response.text
        out.append(response.json())
    return out


def items(found: list[dict[str, object]]) -> list[dict[str, object]]:
    return [item for page in found for item in page["items"]]  # type: ignore[attr-defined]


def test_a_cursor_gives_back_what_went_in() -> None:
    for n in (0, 1, 17, LONGEST_LIST):
        assert same(decode(encode(cursor_of(n), KEY), KEY), cursor_of(n))
    assert same(cursor_of(9).after(0, 0), cursor_of(9))
    later = cursor_of(9).after(4, 3)
    assert (later.header.n, later.header.shown) == (5, 13)
    assert later.item_ids.tolist() == cursor_of(9).item_ids[4:].tolist()


def test_the_longest_cursor_is_shorter_than_its_bound() -> None:
    longest = cursor_of(
        LONGEST_LIST,
        user_id=LARGEST_ID,
        bundle_id="b" * 100,
        degraded=["user_state", "ranking", "retrieval"],
        retriever_names=["s" * 20] * 10,
    )
    cursor = encode(longest, KEY)
    assert len(cursor) < LONGEST_CURSOR
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_every_changed_character_is_found() -> None:
    cursor = encode(cursor_of(2), KEY)
    for place, letter in enumerate(cursor):
        other = "A" if letter != "A" else "B"
        with pytest.raises(ProblemError, match="damaged"):
            decode(cursor[:place] + other + cursor[place + 1 :], KEY)
    for broken in ("", "A", "=", "é", "\x00", cursor[:-1], cursor + "A", cursor + "====", cursor * 2, " " + cursor):
        with pytest.raises(ProblemError, match="damaged"):
            decode(broken, KEY)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05\x00{}",
        paging.LENGTH.pack(2) + b"{}",
        paging.LENGTH.pack(1) + b"\xff",
    ],
)
def test_a_forged_content_with_a_right_hash_is_refused_too(content: bytes) -> None:
    forged = base64.urlsafe_b64encode(content + paging._hash(content, KEY)).rstrip(b"=").decode()
    with pytest.raises(ProblemError) as refused:
        decode(forged, KEY)
    assert (refused.value.status, refused.value.kind) == (422, "invalid-cursor")


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2**70},
        {"shown": 10**6},
        {"user_id": -1},
        {"bundle_id": "x" * 1_000},
        {"retriever_names": ["s"] * 40},
    ],
)
def test_numbers_and_texts_of_a_forged_header_are_bounded(changes: dict[str, object]) -> None:
    """Without an API key the hash can be made by anybody; what is in a header goes into answers and the log."""
    fields = json.loads(cursor_of(0).header.model_dump_json())
    header = json.dumps({**fields, "n": 0, **changes}).encode()
    content = paging.LENGTH.pack(len(header)) + header
    forged = base64.urlsafe_b64encode(content + paging._hash(content, KEY)).rstrip(b"=").decode()
    with pytest.raises(ProblemError, match="damaged"):
        decode(forged, KEY)


def test_a_wrong_number_of_items_is_refused() -> None:
    cursor = cursor_of(3)
    lying = replace(cursor, header=cursor.header.model_copy(update={"n": 4}))
    with pytest.raises(ProblemError, match="damaged"):
        decode(encode(lying, KEY), KEY)


def test_keys_differ_by_data_set_and_secret() -> None:
    cursor = encode(cursor_of(3), key_of("ml-1m", "a secret"))
    for other in (key_of("ml-1m", None), key_of("ml-1m", "another"), key_of("ml-100k", "a secret")):
        with pytest.raises(ProblemError):
            decode(cursor, other)


@pytest.mark.parametrize("asked", [{}, {"genre": "Comedy", "min_ratings": 2}, {"diversity": 0.6}])
def test_pages_together_are_the_list(client: httpx.Client, service: Service, asked: dict[str, object]) -> None:
    found = pages(client, 7, 9, **asked)
    whole = client.get("/v1/users/7/recommendations", params={"k": 100, "paginate": True, **asked}).json()
    assert items(found) == whole["items"]
    assert whole["next_cursor"] is None
    assert [len(page["items"]) for page in found[:-1]] == [9] * (len(found) - 1)  # type: ignore[arg-type]
    assert [item["rank"] for item in items(found)] == list(range(1, len(items(found)) + 1))
    for page in found[1:]:
        assert (page["user_id"], page["model"], page["cold_start"]) == (7, found[0]["model"], False)
    assert service.metrics.as_dict()["pages"] == len(found) - 1


def test_without_paginate_there_is_no_cursor(client: httpx.Client) -> None:
    assert client.get("/v1/users/7/recommendations").json()["next_cursor"] is None


def test_the_page_size_may_change(client: httpx.Client) -> None:
    path = "/v1/users/7/recommendations"
    first = client.get(path, params={"k": 3, "paginate": True}).json()
    second = client.get(path, params={"k": 20, "cursor": first["next_cursor"]}).json()
    assert [item["rank"] for item in second["items"]] == list(range(4, 24))
    third = client.get(path, params={"cursor": second["next_cursor"]}).json()
    assert [item["rank"] for item in third["items"]] == list(range(24, 34))


def test_what_was_rated_meanwhile_is_left_out(client: httpx.Client) -> None:
    path = "/v1/users/22/recommendations"
    whole = [item["item_id"] for item in items(pages(client, 22, 10))]
    first = client.get(path, params={"k": 10, "paginate": True}).json()
    for item in (whole[10], whole[25]):
        assert client.post("/v1/events", json={"user_id": 22, "item_id": item, "rating": 5}).status_code == 201
    second = client.get(path, params={"k": 10, "cursor": first["next_cursor"]}).json()
    third = client.get(path, params={"k": 10, "cursor": second["next_cursor"]}).json()
    left = [item for item in whole if item not in (whole[10], whole[25])]
    assert [item["item_id"] for item in second["items"] + third["items"]] == left[10:30]
    assert [item["rank"] for item in second["items"] + third["items"]] == list(range(11, 31))


def test_pages_go_on_without_the_event_table(
    client: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/v1/users/24/recommendations"
    first = client.get(path, params={"paginate": True}).json()

    def away(*_: object) -> None:
        raise StoreError("the table is away")

    monkeypatch.setattr(service.settings.events, "after", away)
    page = client.get(path, params={"cursor": first["next_cursor"]}).json()
    assert page["degraded"] == ["user_state"]
    assert len(page["items"]) == 10


def test_another_worker_with_another_model_goes_on(
    client: httpx.Client, settings: ServiceSettings, store: InMemoryStore, model: ServedModel, world: ServingWorld
) -> None:
    """The next model lacks two items; the list stays what it was without them."""
    whole = items(pages(client, 7, 10))
    first = client.get("/v1/users/7/recommendations", params={"paginate": True}).json()
    gone = {whole[12]["item_id"], whole[13]["item_id"]}
    kept = ~np.isin(model.catalogue.item_ids, list(gone))  # type: ignore[arg-type]
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
        second = other.get("/v1/users/7/recommendations", params={"cursor": first["next_cursor"]}).json()
    assert second["model"] == first["model"]
    expected = [item["item_id"] for item in whole if item["item_id"] not in gone]
    assert [item["item_id"] for item in second["items"]] == expected[10:20]
    assert [item["title"] for item in second["items"]] == [f"Film {m} ({1950 + m % 60})" for m in expected[10:20]]


def test_pages_of_a_history_in_the_body(client: httpx.Client) -> None:
    history = [{"item_id": 5, "rating": 4.0}, {"item_id": 9, "rating": 5.0}]
    first = client.post("/v1/recommendations", json={"history": history, "k": 4, "paginate": True}).json()
    whole = client.post("/v1/recommendations", json={"history": history, "k": 12}).json()["items"]
    assert first["items"] == whole[:4]
    rated = [*history, {"item_id": whole[5]["item_id"], "rating": 3.0}]
    second = client.post("/v1/recommendations", json={"cursor": first["next_cursor"], "k": 4, "history": rated}).json()
    assert [i["item_id"] for i in second["items"]] == [m["item_id"] for m in [whole[4], *whole[6:9]]]
    third = client.post("/v1/recommendations", json={"cursor": second["next_cursor"], "k": 3}).json()
    assert [i["item_id"] for i in third["items"]] == [m["item_id"] for m in whole[9:12]]


def test_cursors_of_others_are_refused(client: httpx.Client) -> None:
    cursor = client.get("/v1/users/7/recommendations", params={"paginate": True}).json()["next_cursor"]
    for response in (
        client.get("/v1/users/8/recommendations", params={"cursor": cursor}),
        client.post("/v1/recommendations", json={"cursor": cursor}),
        client.get("/v1/users/7/recommendations", params={"cursor": cursor[:-2]}),
        client.get("/v1/users/7/recommendations", params={"cursor": "nonsense"}),
    ):
        assert response.status_code == 422
        assert response.json()["type"] == "urn:recsys:problem:invalid-cursor"


def test_a_cursor_comes_alone(client: httpx.Client) -> None:
    cursor = client.get("/v1/users/7/recommendations", params={"paginate": True}).json()["next_cursor"]
    response = client.get("/v1/users/7/recommendations", params={"cursor": cursor, "genre": "Drama", "explain": True})
    assert response.status_code == 422
    assert "leave out explain, genre" in response.json()["detail"]
    response = client.post("/v1/recommendations", json={"cursor": cursor, "filters": {"min_ratings": 1}})
    assert "leave out filters" in response.json()["detail"]


def test_a_list_ends_after_its_bound(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.recommending.options.LONGEST_LIST", 25)
    assert len(items(pages(client, 7, 10))) == 25
