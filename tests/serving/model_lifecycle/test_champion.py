"""Following the champion: what is swapped in, what is refused, and who finishes on which model."""

import gc
import json
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from recsys.bundle import try_bundle
from recsys.errors import BundleError, RegistryError
from recsys.recommender import Recommender
from recsys.registry import Registry
from serving.model_lifecycle import champion as following
from serving.model_lifecycle import served_model
from serving.model_lifecycle.champion import Champion
from serving.model_lifecycle.served_model import item_stats
from serving.recommending.service import Service
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_client import recommendations
from tests.serving.serving_world import ServingWorld
from tests.serving.versions import Versions


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The trial in a child process takes seconds; the test that is about it takes it back."""
    folders: list[Path] = []
    monkeypatch.setattr(served_model, "try_bundle", folders.append)
    return folders


@pytest.fixture
def champion(service: Service) -> Champion:
    service.champion.reload()  # learns which version it serves
    return service.champion


def another(world: ServingWorld, service: Service, reload_s: float) -> Champion:
    settings = world.settings.model_copy(update={"reload_s": reload_s})
    return Champion(settings, service.store, service.metrics, service.champion.model)


@pytest.mark.usefixtures("champion")
def test_a_promotion_is_followed_and_shown(client: httpx.Client, versions: Versions, tried: list[Path]) -> None:
    before = recommendations(client)
    versions.promote(versions.make("second"))
    assert client.get("/v1/model").json()["bundle_id"] == "tiny-production"
    assert client.post("/v1/admin/reload").json()["outcome"] == "swapped"
    after = recommendations(client)
    assert after["model"]["bundle_id"] == "second"
    assert after["items"] == before["items"]
    assert [folder.name for folder in tried] == ["second"]
    card = client.get("/v1/model").json()
    assert (card["bundle_id"], card["reload"]["last_failure"]) == ("second", None)
    assert card["counters"]["reload.swapped"] == 1
    assert f'bundle_id="second",dataset="tiny-world",version="{card["version"]}"}} 1.0' in client.get("/metrics").text
    assert client.post("/v1/admin/reload").json()["outcome"] == "unchanged"


def test_the_alias_is_followed_on_its_own(world: ServingWorld, service: Service, versions: Versions) -> None:
    another(world, service, reload_s=0.0).start()
    assert "follow-champion" not in {thread.name for thread in threading.enumerate()}
    champion = another(world, service, reload_s=0.05)
    champion.start()
    second = versions.promote(versions.make("second"))
    until = time.monotonic() + 30
    while champion.model.version != second:
        assert time.monotonic() < until
        time.sleep(0.01)
    champion.close()
    assert service.metrics.as_dict()["reload.swapped"] == 1


def test_trees_cut_short_with_right_digests_are_refused_while_the_old_model_answers(
    client: httpx.Client, champion: Champion, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LightGBM may end the process that reads them."""
    monkeypatch.setattr(served_model, "try_bundle", try_bundle)
    version = versions.promote(versions.make("cut", trees_left=1 / 3))
    assert champion.reload() == "refused"
    assert f"version {version} was refused (BundleError)" in str(champion.status()["last_failure"])
    assert recommendations(client)["model"]["bundle_id"] == "tiny-production"


def test_a_broken_bundle_is_refused_once_and_the_old_one_stays(
    client: httpx.Client, champion: Champion, versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are not those that its own sums name; the registry is made to hand them out all the same."""
    loads: list[int] = []
    version = versions.promote(versions.make("altered"))
    altered = tmp_path / "altered"
    (altered / "recommender.json").write_text('{"fetch": 3, "keep": 2, "rank": 1}')
    monkeypatch.setattr(Registry, "download", lambda _, info, **__: loads.append(info.version) or altered)
    assert [champion._look(again=False) for _ in range(3)] == ["refused", "unchanged", "unchanged"]
    assert loads == [version]
    card = client.get("/v1/model").json()
    assert card["bundle_id"] == "tiny-production"
    assert f"version {version} was refused (BundleError)" in card["reload"]["last_failure"]
    assert str(tmp_path) not in json.dumps(card)
    assert card["counters"]["reload.refused"] == 1
    recommendations(client)
    answer = client.post("/v1/admin/reload").json()
    assert (answer["outcome"], "was refused" in answer["failure"]) == ("refused", True)
    assert loads == [version, version], "on request it is tried again"
    versions.promote(1)
    assert champion._look(again=False) == "unchanged"
    assert client.get("/v1/model").json()["reload"]["last_failure"] is None


def test_what_cannot_be_fetched_is_tried_again(
    champion: Champion, service: Service, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.promote(versions.make("second"))

    def away(*_: object, **__: object) -> None:
        raise RegistryError("the server is away, at http://secret-host")

    for name in ("resolve", "download"):
        with monkeypatch.context() as patch:
            patch.setattr(Registry, name, away)
            assert champion._look(again=False) == "failed"
    assert "could not be fetched (RegistryError)" in str(champion.status()["last_failure"])
    assert "secret-host" not in str(champion.status())
    assert service.metrics.as_dict()["reload.failed"] == 2
    assert champion._look(again=False) == "swapped"
    assert champion.status()["last_failure"] is None


def test_looks_become_rarer_while_the_registry_is_away_and_no_failure_ends_them(
    world: ServingWorld, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = another(world, service, reload_s=0.01)
    pauses: list[float] = []

    def wait(pause_s: float) -> bool:
        pauses.append(pause_s)
        return len(pauses) > 5

    monkeypatch.setattr(following, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(champion._stop, "wait", wait)
    with monkeypatch.context() as broken:
        broken.setattr(Registry, "resolve", lambda *_: {}["tags"])  # what nobody expected
        champion._follow()
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.1, 0.1]
    assert service.metrics.as_dict()["reload.failed"] == 5
    assert "the champion could not be followed (KeyError)" in str(champion.status()["last_failure"])
    assert champion._look(again=False) == "unchanged"
    assert champion.status()["last_failure"] is None


def test_a_model_of_other_data_or_without_an_answer_is_refused(
    champion: Champion, service: Service, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.promote(versions.make("foreign", dataset=replace(champion.model.bundle.facts.dataset, name="other")))
    assert champion.reload() == "refused"
    stats = champion.model.stats
    with monkeypatch.context() as patch:
        patch.setattr(
            service.store, "item_stats_as_of", lambda *_: replace(stats, n_ratings=np.zeros_like(stats.n_ratings))
        )
        with pytest.raises(BundleError, match="knows no item of this bundle; run `recsys train --only features"):
            item_stats(champion.model.catalogue, service.store, 2_000_000_000)
    ranked = Recommender.ranked_scores
    monkeypatch.setattr(Recommender, "ranked_scores", lambda *args: np.full_like(ranked(*args), np.nan))
    versions.promote(versions.make("second"))
    assert champion.reload() == "refused"
    assert "refused (BundleError)" in str(champion.status()["last_failure"])
    assert champion.model.bundle.facts.bundle_id == "tiny-production"


def test_a_model_that_was_replaced_goes_without_the_collector(champion: Champion, versions: Versions) -> None:
    """What was loaded at start is frozen, and a collection of all the rest would be felt: counts have to do."""
    second = versions.make("second")
    gone: list[weakref.ref[object]] = []
    gc.collect()
    gc.disable()
    try:
        for version in (second, 1, second):
            versions.promote(version)
            assert champion.reload() == "swapped"
            gone.append(weakref.ref(champion.model.recommender))
    finally:
        gc.enable()
    assert [reference() for reference in gone[:-1]] == [None, None]


def test_statistics_are_read_again(
    client: httpx.Client, champion: Champion, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = champion.model
    assert champion.refresh_stats() is False
    assert champion.model is model
    newer = replace(model.stats, day=model.stats.day + 1, decayed=model.stats.decayed * 2)
    monkeypatch.setattr(service.store, "item_stats_as_of", lambda *_: newer)
    assert client.post("/v1/admin/reload").json()["outcome"] == "unchanged"
    assert champion.model.stats is newer
    assert champion.model.bundle is model.bundle
    assert client.get("/v1/model").json()["item_statistics_day"] == "2002-11-30"


def test_answers_go_on_during_reloads(
    client: httpx.Client, world: ServingWorld, champion: Champion, versions: Versions
) -> None:
    """No request fails, and each answer is of one of the two models and of its own user."""
    second = versions.make("second")
    stop = threading.Event()

    def request_lists(user_id: int) -> list[object]:
        wrong: list[object] = []
        with httpx.Client(base_url=client.base_url, trust_env=False, timeout=30) as other:
            while not stop.is_set():
                body = other.get(f"/v1/users/{user_id}/recommendations").raise_for_status().json()
                shown = {item["item_id"] for item in body["items"]}
                if body["user_id"] != user_id or body["degraded"] or shown & world.seen(user_id):
                    wrong.append(body)
        return wrong

    with ThreadPoolExecutor() as callers:
        running = [callers.submit(request_lists, user_id) for user_id in (3, 4)]
        for version in (second, 1, second, 1):
            versions.promote(version)
            champion.reload()  # or the follower was quicker
            assert champion.model.version == version
        stop.set()
        assert [caller.result() for caller in running] == [[], []]


def test_a_request_ends_on_the_model_it_began_with(
    client: httpx.Client, champion: Champion, store: InMemoryStore, versions: Versions
) -> None:
    versions.promote(versions.make("second"))
    store.delay_s = 1.0
    with ThreadPoolExecutor() as callers:
        slow = callers.submit(client.get, "/v1/users/3/recommendations")
        until = time.monotonic() + 20
        while not store.reads:
            assert time.monotonic() < until
        assert champion.reload() == "swapped"
        assert slow.result().json()["model"]["bundle_id"] == "tiny-production"
    store.delay_s = 0.0
    assert client.get("/v1/users/3/recommendations").json()["model"]["bundle_id"] == "second"
