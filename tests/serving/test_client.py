"""The Python client: against the running service, and against one that is made up to be busy."""

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from serving.client import LONGEST_PAUSE_S, Client, ServiceError
from serving.schemas import FilterBody, Profile, Rated
from serving.service import Service

from .serving_client import connected
from .serving_world import ITEMS, ServingWorld


@pytest.fixture
def asking(client: httpx.Client) -> Iterator[Client]:
    with Client(str(client.base_url)) as open_client:
        yield open_client


class Busy:
    """Refuses with these statuses in turn, then answers like a model card's history."""

    def __init__(self, *refusals: tuple[int, dict[str, str]]) -> None:
        self.refusals = list(refusals)
        self.slept: list[float] = []
        self.asked = 0

    def __call__(self, _: httpx.Request) -> httpx.Response:
        self.asked += 1
        if not self.refusals:
            found = {"request_id": "r", "user_id": 1, "known": False, "n_events": 0, "events": []}
            return httpx.Response(200, json=found)
        status, headers = self.refusals.pop(0)
        problem = {"type": "urn:recsys:problem:overloaded", "title": "Overloaded", "status": status, "detail": "later"}
        return httpx.Response(status, json=problem, headers={"content-type": "application/problem+json", **headers})

    def client(self, retries: int = 2) -> Client:
        return Client("http://made.up", retries=retries, transport=httpx.MockTransport(self), sleep=self.slept.append)


def test_recommend_with_everything(asking: Client, client: httpx.Client) -> None:
    found = asking.recommend(
        7,
        5,
        genres=["Drama", "Romance"],
        year_from=1955,
        year_to=2005,
        exclude_ids=[3, 50],
        min_ratings=2,
        diversity=0.4,
    )
    query = {"k": 5, "genre": ["Drama", "Romance"], "year_from": 1955, "year_to": 2005, "exclude_ids": [3, 50]}
    raw = client.get("/v1/users/7/recommendations", params={**query, "min_ratings": 2, "diversity": 0.4}).json()
    assert [item.model_dump() for item in found.items] == raw["items"]
    assert (found.user_id, len(found.items)) == (7, 5)
    assert len(asking.recommend(7).items) == 10
    assert asking.recommend(7, explain=True).items[0].explanation is not None


def test_recommend_for_a_history(asking: Client, client: httpx.Client) -> None:
    history = [Rated(item_id=5, rating=4.0), Rated(item_id=9, rating=5.0, timestamp=1_000_000_000)]
    profile, filters = Profile(gender="F", age=25), FilterBody(genres=["Drama"])
    found = asking.recommend_for_history(history, 4, profile=profile, filters=filters, diversity=0.2)
    body = {
        "history": [{"item_id": 5, "rating": 4}, {"item_id": 9, "rating": 5, "timestamp": 1_000_000_000}],
        "profile": {"gender": "F", "age": 25},
        "filters": {"genres": ["Drama"]},
        "k": 4,
        "diversity": 0.2,
    }
    assert [m.model_dump() for m in found.items] == client.post("/v1/recommendations", json=body).json()["items"]
    assert asking.recommend_for_history([]).cold_start


def test_recommend_many(asking: Client) -> None:
    answers = asking.recommend_many([4, 9, -1], 3, filters=FilterBody(min_ratings=2), diversity=0.1).answers
    assert [answer.user_id for answer in answers] == [4, 9, -1]
    assert [len(answer.items) for answer in answers] == [3, 3, 0]
    assert answers[2].problem is not None
    assert answers[2].problem.status == 422


def test_pages(asking: Client, world: ServingWorld) -> None:
    pages = list(asking.pages(asking.recommend(7, 30, paginate=True), 20))
    assert [len(page.items) for page in pages] == [30, 20, ITEMS - len(world.seen(7)) - 50]
    shown = [item.item_id for page in pages for item in page.items]
    assert sorted(shown) == sorted(set(range(1, ITEMS + 1)) - world.seen(7))
    history = [Rated(item_id=5, rating=4.0)]
    pages = list(asking.pages(asking.recommend_for_history(history, 40, paginate=True), 40))
    assert [len(page.items) for page in pages] == [40, ITEMS - 1 - 40]
    assert len(list(asking.pages(asking.recommend(7, 3)))) == 1


def test_the_rest(asking: Client, world: ServingWorld) -> None:
    assert [item.rank for item in asking.similar(5, 3).items] == [1, 2, 3]
    assert [item.item_id for item in asking.search("bold").items] == [1]
    recorded = asking.record(30, 4, 4.5, timestamp=world.end + 7)
    assert (recorded.user_id, recorded.item_id, recorded.timestamp) == (30, 4, world.end + 7)
    assert asking.record(30, 5, 3.0).timestamp == world.end + 86_400
    events = asking.history(30, 2).events
    assert [(event.item_id, event.rating) for event in events] == [(5, 3.0), (4, 4.5)]
    assert asking.model().bundle_id == world.bundle_id


def test_a_refusal_carries_the_problem(asking: Client) -> None:
    with pytest.raises(ServiceError, match="404 Unknown item: Item 999 is not in the catalogue") as refused:
        asking.similar(999)
    assert (refused.value.status, refused.value.kind) == (404, "unknown-item")
    assert refused.value.problem["item_id"] == 999


def test_the_key_is_sent(world: ServingWorld, service: Service) -> None:
    keyed = world.settings.model_validate({**dict(world.settings), "api_key": "0123456789abcdef"})
    with connected(keyed, service) as raw:
        with Client(str(raw.base_url), api_key="0123456789abcdef") as client:
            assert client.record(32, 4, 4.5).user_id == 32
        for wrong in (None, "fedcba9876543210"):
            with Client(str(raw.base_url), api_key=wrong) as client, pytest.raises(ServiceError) as refused:
                client.record(32, 5, 4.5)
            assert refused.value.status == 401


def test_busy_services_are_asked_again_when_they_say() -> None:
    busy = Busy((503, {"Retry-After": "3"}), (429, {"Retry-After": "1"}))
    assert busy.client().history(1).n_events == 0
    assert busy.slept == [3.0, 1.0]


def test_without_a_word_the_pauses_double() -> None:
    busy = Busy((503, {}), (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}), (429, {}))
    busy.client(retries=3).history(1)
    assert busy.slept == [0.5, 1.0, 2.0]


def test_retries_are_bounded() -> None:
    busy = Busy(*[(503, {"Retry-After": "1"})] * 9)
    with pytest.raises(ServiceError, match="503 Overloaded: later"):
        busy.client(retries=2).history(1)
    assert (busy.asked, busy.slept) == (3, [1.0, 1.0])
    too_long = Busy((503, {"Retry-After": str(int(LONGEST_PAUSE_S) + 1)}))
    with pytest.raises(ServiceError):
        too_long.client().history(1)
    assert too_long.slept == []


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500])
def test_what_asking_again_would_not_change_is_not_asked_again(status: int) -> None:
    refusing = Busy((status, {"Retry-After": "1"}))
    with pytest.raises(ServiceError):
        refusing.client().history(1)
    assert refusing.asked == 1


def test_an_answer_that_is_no_problem_has_none() -> None:
    proxy = Busy((502, {"content-type": "text/html"}))
    with pytest.raises(ServiceError, match="502 : no problem details") as refused:
        proxy.client().history(1)
    assert (refused.value.problem, refused.value.kind) == ({}, "")


def test_importing_the_client_brings_no_model_library() -> None:
    heavy = "{'torch', 'faiss', 'lightgbm', 'feast', 'mlflow', 'pandas', 'fastapi'}"
    code = f"import sys, serving.client; print(*sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
