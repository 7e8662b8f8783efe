"""Experiments and shadow over HTTP: who is answered by what, what the log says of it, and how it ends."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from pipelines.monitoring.recompute import EXPLORED, Recomputer
from pipelines.monitoring.skew import check
from recsys.bundle import load_bundle
from recsys.data.tables import load_tables
from recsys.errors import RegistryError
from recsys.experiments.assignment import Arm, Experiment
from recsys.experiments.exploration import slot_probabilities
from recsys.monitoring.prediction_log import predictions_folder, read_answers
from recsys.registry import Registry, Traffic
from serving.model_lifecycle import live_traffic, served_model
from serving.model_lifecycle.served_model import ServedModel
from serving.recommending.answers import FEW_RATINGS
from serving.recommending.service import Service
from serving.settings import ServiceSettings

from .conftest import service_of
from .in_memory_store import InMemoryStore
from .serving_client import connected, recommendations, shown
from .serving_world import ServingWorld
from .versions import Versions

K = 10
Follow = Callable[[Traffic], None]


@pytest.fixture(autouse=True)
def _no_trial_in_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "try_bundle", lambda _: None)


@pytest.fixture
def follow(service: Service, versions: Versions) -> Follow:
    def set_and_look(traffic: Traffic) -> None:
        versions.registry.set_traffic(traffic)
        service.champion.look_at_traffic()

    return set_and_look


def trial(version: int | None = None, share: float = 0.5, **settings: float) -> Traffic:
    arms = (Arm("control", 1 - share), Arm("varied", share, version, dict(settings)))
    return Traffic(experiment=Experiment("trial", arms))


def everybody(**settings: float) -> Traffic:
    """Two arms that are the same, so that every user gets these settings."""
    arms = (Arm("a", 0.5, None, dict(settings)), Arm("b", 0.5, None, dict(settings)))
    return Traffic(experiment=Experiment("all", arms))


def ask(client: httpx.Client, request_id: str, user_id: int, **parameters: Any) -> dict[str, Any]:
    headers = {"X-Request-ID": request_id}
    response = client.get(f"/v1/users/{user_id}/recommendations", params=parameters, headers=headers)
    body: dict[str, Any] = response.raise_for_status().json()
    return body


def logged(service: Service, world: ServingWorld, prefix: str) -> pd.DataFrame:
    service.predictions.close()
    rows = read_answers(predictions_folder(world.home))
    return rows[rows["request_id"].str.startswith(prefix)]


def test_a_user_keeps_the_arm_in_every_service_and_shares_hold(
    client: httpx.Client,
    service: Service,
    settings: ServiceSettings,
    store: InMemoryStore,
    model: ServedModel,
    world: ServingWorld,
    versions: Versions,
    follow: Follow,
) -> None:
    assert recommendations(client)["experiment"] is None
    second = versions.make("second")
    follow(trial(second, share=0.3))
    bodies = {user_id: ask(client, f"arm-{user_id}", user_id, k=1) for user_id in range(1, 301)}
    arms = {user_id: body["experiment"]["arm"] for user_id, body in bodies.items()}
    assert all(body["model"]["version"] == {"control": 1, "varied": second}[arms[u]] for u, body in bodies.items())
    assert abs(np.mean([arm == "varied" for arm in arms.values()]) - 0.3) < 3 * np.sqrt(0.3 * 0.7 / 300)
    answers = client.post("/v1/users/recommendations", json={"user_ids": list(range(1, 9))}).json()["answers"]
    assert [one["experiment"]["arm"] for one in answers] == [arms[u] for u in range(1, 9)]
    assert [one["model"] for one in answers] == [bodies[u]["model"] for u in range(1, 9)]
    assert client.post("/v1/recommendations", json={"k": 1}).json()["experiment"] is None, "nobody's history"

    rows = logged(service, world, "arm-").set_index("user_id")
    assert rows["arm"].to_dict() == arms
    assert set(rows["role"]) == {"shown"}
    assert set(rows["experiment"]) == {"trial"}
    assert (rows["total_ms"] > 0).all()
    n = sum(arm == "varied" for arm in arms.values()) + sum(arms[u] == "varied" for u in range(1, 9))
    assert f'recsys_arm_answers_total{{arm="varied",experiment="trial"}} {n:.1f}' in client.get("/metrics").text

    restarted = service_of(settings, store, model, world)
    restarted.champion.look_at_traffic()
    with connected(settings, restarted) as other:
        again = {u: recommendations(other, u, k=1) for u in range(1, 61)}
    restarted.close()
    assert {u: body["experiment"]["arm"] for u, body in again.items()} == {u: arms[u] for u in range(1, 61)}
    assert all(body["model"] == bodies[u]["model"] for u, body in again.items())


def test_a_page_belongs_to_the_arm_that_made_its_list(client: httpx.Client, versions: Versions, follow: Follow) -> None:
    follow(trial(versions.make("second"), share=0.99))
    first = recommendations(client, k=3, paginate=True)
    follow(Traffic())
    page = recommendations(client, k=3, cursor=first["next_cursor"])
    assert page["experiment"] == first["experiment"] == {"name": "trial", "arm": "varied"}
    assert page["model"] == first["model"]


def test_a_version_that_cannot_be_loaded_is_served_by_the_champion_which_says_so(
    client: httpx.Client, service: Service, world: ServingWorld, versions: Versions, follow: Follow
) -> None:
    before = recommendations(client)["items"]
    dataset = service.champion.model.bundle.facts.dataset
    foreign = versions.make("foreign", dataset=type(dataset)(**vars(dataset) | {"name": "other"}))
    follow(trial(foreign, share=0.99, diversity=1.0))
    service.champion.look_at_traffic()
    body = ask(client, "broken-7", 7)
    assert body["experiment"] == {"name": "trial", "arm": "varied:champion"}
    assert (body["model"]["version"], body["items"], body["degraded"]) == (1, before, [])
    assert 'arm="varied:champion",experiment="trial"} 1.0' in client.get("/metrics").text
    card = client.get("/v1/model").json()
    assert card["counters"]["reload.refused"] == 1, "tried once"
    assert card["reload"]["traffic"] == {"shadow": None, "experiment": "trial", "loaded": [], "not_loaded": [foreign]}
    rows = logged(service, world, "broken-")
    assert set(zip(rows["arm"], rows["version"], strict=True)) == {("varied:champion", 1)}


def test_what_cannot_be_fetched_is_tried_again_and_a_promoted_version_is_not_loaded_twice(
    service: Service, versions: Versions, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, second = service.champion, versions.make("second")

    def away(*_: object, **__: object) -> None:
        raise RegistryError("the server is away")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "download", away)
        patch.setattr(live_traffic, "RETRY_S", 0.0)
        follow(trial(second))
        assert champion.traffic.models == {}
    champion.look_at_traffic()
    before = champion.traffic.models[second]
    newer = replace(before.stats, day=before.stats.day + 1, decayed=before.stats.decayed * 2)
    monkeypatch.setattr(service.store, "item_stats_as_of", lambda *_: newer)
    assert champion.refresh_stats() is True
    loaded = champion.traffic.models[second]
    assert (loaded.stats, loaded.bundle) == (newer, before.bundle)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "traffic", away)
        champion.look_at_traffic()
        assert "asked for the traffic (RegistryError)" in str(champion.status()["last_failure"])
    assert champion.traffic.models == {second: loaded}
    versions.promote(second)
    assert champion.reload() == "swapped"
    assert champion.model is loaded
    assert champion.traffic.models == {}, "it is the champion's now"
    assert {champion.traffic.assign(user, champion.model).model for user in range(50)} == {loaded}


def test_an_arm_sets_the_diversity_of_requests_that_name_none(client: httpx.Client, follow: Follow) -> None:
    plain, varied = (shown(recommendations(client, diversity=value)) for value in (0.0, 0.8))
    assert plain != varied
    follow(everybody(diversity=0.8))
    assert shown(recommendations(client)) == varied
    assert shown(recommendations(client, diversity=0.0)) == plain


def test_a_shadow_changes_no_answer_and_is_logged(
    settings: ServiceSettings, store: InMemoryStore, model: ServedModel, world: ServingWorld, versions: Versions
) -> None:
    second = versions.make("second")
    shadowed = settings.model_copy(update={"shadow_share": 1.0})
    service = service_of(shadowed, store, model, world)
    with connected(shadowed, service) as client:
        before = {user_id: shown(ask(client, f"alone-{user_id}", user_id)) for user_id in range(1, 6)}
        versions.registry.set_traffic(Traffic(shadow=second))
        service.champion.look_at_traffic()
        for n, (user_id, items) in enumerate(before.items(), start=1):
            body = ask(client, f"shadow-{user_id}", user_id, explain=True)
            assert (shown(body), body["model"]["version"], body["experiment"]) == (items, 1, None)
            until = time.monotonic() + 10
            while service.metrics.as_dict().get("shadow.made", 0) < n:
                assert time.monotonic() < until
                time.sleep(0.005)
        ask(client, "page-1", 1, k=3, cursor=ask(client, "shadow-page", 1, k=3, paginate=True)["next_cursor"])
        assert service.metrics.as_dict()["requests"] == 11, "what is not shown is not counted as an answer"
        for name in ("shadow-lost-1", "shadow-lost-2"):
            ask(client, name, 1)
    service.close()
    rows = logged(service, world, "shadow-")
    rows = rows[rows["request_id"].isin([f"shadow-{user_id}" for user_id in before])]
    for role, version in (("shown", 1), ("shadow", second)):
        own = rows[rows["role"] == role]
        assert own.groupby("user_id")["item_id"].apply(list).to_dict() == before, "the second is a copy of the first"
        assert set(own["version"]) == {version}
    assert logged(service, world, "alone-")["role"].eq("shown").all()


def test_a_shadow_that_fails_is_counted_and_one_waits_at_a_time(
    service: Service, monkeypatch: pytest.MonkeyPatch, settings: ServiceSettings, versions: Versions, follow: Follow
) -> None:
    monkeypatch.setattr(service.shadow, "_share", 1.0)
    monkeypatch.setattr("serving.recommending.shadow.PAUSE_S", 0.5)
    follow(Traffic(shadow=versions.make("second")))
    with connected(settings, service) as client:
        first = recommendations(client)
        assert recommendations(client)["items"] == first["items"]
        monkeypatch.setattr(service.answers, "recommend", lambda *_: {}["items"])
        until = time.monotonic() + 10
        while not service.metrics.as_dict().get("shadow.failed"):
            assert time.monotonic() < until
            time.sleep(0.01)
    assert service.metrics.as_dict()["shadow.skipped"] == 1


def test_the_logged_propensities_are_those_of_the_exploration(
    client: httpx.Client, service: Service, settings: ServiceSettings, world: ServingWorld, follow: Follow
) -> None:
    share, users = 0.3, range(1, 41)
    ranked = {user_id: shown(recommendations(client, user_id, k=K)) for user_id in users}
    follow(everybody(exploration=share))
    bodies = {u: ask(client, f"explored-{u}", u, k=K, explain=True) for u in users}
    assert all(body["degraded"] == [] and len(set(shown(body))) == K for body in bodies.values())
    rows = logged(service, world, "explored-")
    few = dict(zip(service.champion.model.catalogue.item_ids, service.champion.model.stats.n_ratings, strict=True))
    explored = 0
    for user_id, own in rows.groupby("user_id"):
        assert own["item_id"].tolist() == shown(bodies[int(user_id)])
        drawn = ~own["item_id"].isin(ranked[int(user_id)])
        explored += drawn.sum()
        assert own.loc[drawn, "item_id"].map(few).lt(FEW_RATINGS).all()
        design = slot_probabilities(K, 30, share, K)  # the pool's size does not matter to the ranking
        ranks = own.loc[~drawn, "item_id"].map(ranked[int(user_id)].index)
        assert own.loc[~drawn, "propensity"].to_numpy() == pytest.approx(design[ranks, own[~drawn]["position"] - 1])
        pool = share / own.loc[drawn, "propensity"]  # the ranker sees 40 of the candidates
        assert pool.nunique() <= 1
        assert pool.round(3).isin(range(10, 31)).all()
    assert abs(explored / (K * len(users)) - share) < 0.08
    assert np.isfinite(rows["score"]).all()
    assert shown(recommendations(client, 1, k=K, paginate=True)) == ranked[1], "a list of pages is not explored"

    bundle_id = service.champion.model.bundle.facts.bundle_id
    recommenders = {bundle_id: load_bundle(world.home.bundles / bundle_id).recommender}
    report = check(Recomputer(load_tables(world.home.data), settings.events, recommenders), rows, "tiny", 0)
    assert report.left_out == {EXPLORED: len(users)}


def test_a_rollback_reaches_the_service_without_a_failed_answer(
    settings: ServiceSettings, store: InMemoryStore, model: ServedModel, world: ServingWorld, versions: Versions
) -> None:
    following = settings.model_copy(update={"reload_s": 0.2})
    service = service_of(following, store, model, world)
    versions.registry.set_traffic(trial(versions.make("second"), share=0.99))
    service.champion.look_at_traffic()
    answers = list[tuple[float, int, Any]]()
    with connected(following, service) as client:
        until = time.monotonic() + 30
        rolled_back = math.inf
        while not answers or answers[-1][2] is not None:
            if len(answers) == 20:
                versions.registry.set_traffic(Traffic())
                rolled_back = time.monotonic()
            response = client.get("/v1/users/7/recommendations")
            answers.append((time.monotonic(), response.status_code, response.json()["experiment"]))
            assert answers[-1][0] < until
    service.close()
    assert {status for _, status, _ in answers} == {200}
    assert answers[0][2] == {"name": "trial", "arm": "varied"}
    assert answers[-1][0] < rolled_back + following.reload_s + 2.0, "and what a look at the registry takes"
    assert service.champion.traffic.models == {}
