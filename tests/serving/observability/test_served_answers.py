"""Answers over HTTP, as the service logs them, equal their recomputation from data set and event table to the bit."""

import httpx

from pipelines.monitoring.recompute import Recomputer
from pipelines.monitoring.skew import check
from recsys.bundle import load_bundle
from recsys.data.tables import load_tables
from recsys.monitoring.prediction_log import predictions_folder, read_answers
from serving.recommending.service import Service
from serving.settings import ServiceSettings

from ..serving_world import ServingWorld


def test_what_is_served_is_what_should_be_served(
    world: ServingWorld, settings: ServiceSettings, service: Service, client: httpx.Client
) -> None:
    """Users with and without events since, strangers, filters, variety, pages, several users in one request."""
    numbers = iter(range(1_000))

    def headers() -> dict[str, str]:
        return {"X-Request-ID": f"skew-{next(numbers)}"}

    def get(path: str, **parameters: object) -> httpx.Response:
        answer = client.get(path, params=parameters, headers=headers())  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["degraded"]) == (200, [])
        return answer

    for user_id in (1, 2, 3, 9_999):
        shown = get(f"/v1/users/{user_id}/recommendations", k=5).json()["items"]
        for item, rating in zip(shown[:2], (0.5, 5.0), strict=True):
            event = {"user_id": user_id, "item_id": item["item_id"], "rating": rating}
            assert client.post("/v1/events", json=event, headers=headers()).status_code == 201
            get(f"/v1/users/{user_id}/recommendations", k=5)
    get("/v1/users/4/recommendations", k=3, genre="Drama", diversity=0.4)
    several = client.post("/v1/users/recommendations", json={"user_ids": [1, 5, 6, 9_999]}, headers=headers())
    assert several.status_code == 200
    page = get("/v1/users/5/recommendations", k=3, paginate=True).json()
    get("/v1/users/5/recommendations", k=3, cursor=page["next_cursor"])
    service.close()

    bundle_id = service.champion.model.bundle.facts.bundle_id
    recommenders = {bundle_id: load_bundle(world.home.bundles / bundle_id).recommender}
    recomputer = Recomputer(load_tables(world.home.data), settings.events, recommenders)
    rows = read_answers(predictions_folder(world.home))
    report = check(recomputer, rows[rows["request_id"].str.startswith("skew-")], "tiny", 0)
    assert report.differing == 0, report.text()
    assert report.compared == 4 * 3 + 1 + 4 + 1
    assert report.left_out == {"a further page of a list": 1}
