"""Following the champion: what is swapped in, what is refused, and who finishes on which model."""

import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from recsys.bundle import _write_facts, read_facts, try_bundle
from recsys.errors import BundleError, RegistryError, StoreError
from recsys.registry import Registry
from serving.model_lifecycle import champion as following
from serving.model_lifecycle import served_model
from serving.model_lifecycle.champion import Champion
from serving.model_lifecycle.served_model import item_stats, registry_of
from serving.recommending.service import Service
from tests.serving.in_memory_store import InMemoryStore
from tests.serving.serving_world import ServingWorld


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The trial in a child process takes seconds; the tests that are about it take it back."""
    folders: list[Path] = []
    monkeypatch.setattr(served_model, "try_bundle", folders.append)
    return folders


class Versions:
    """A registry whose champion the test moves; bundles are copies of the first one under other names."""

    def __init__(self, world: ServingWorld, registry: Registry, folder: Path) -> None:
        self._first = world.home.bundles / world.bundle_id
        self.registry, self._folder = registry, folder

    def make(self, bundle_id: str, trees_left: float = 1.0, **changes: object) -> int:
        folder = self._folder / bundle_id
        shutil.copytree(self._first, folder)
        trees = (folder / "ranker.txt").read_bytes()
        (folder / "ranker.txt").write_bytes(trees[: int(len(trees) * trees_left)])
        facts = replace(read_facts(folder), bundle_id=bundle_id, **changes)  # type: ignore[arg-type]
        _write_facts(folder, facts)
        return self.registry.register(folder).version

    def promote(self, version: int) -> None:
        self.registry.promote(version)


@pytest.fixture
def versions(world: ServingWorld, tmp_path: Path) -> Iterator[Versions]:
    """The champion is the first version again afterwards."""
    registry = registry_of(world.settings)
    yield Versions(world, registry, tmp_path)
    registry.promote(1)


@pytest.fixture
def champion(service: Service) -> Champion:
    service.champion.reload()  # learns which version it serves
    return service.champion


def test_a_promotion_is_followed_and_told(
    client: httpx.Client, champion: Champion, versions: Versions, tried: list[Path]
) -> None:
    old = champion.model
    before = client.get("/v1/users/7/recommendations").json()
    versions.promote(versions.make("second"))
    assert client.get("/v1/model").json()["bundle_id"] == old.bundle.facts.bundle_id
    assert client.post("/v1/admin/reload").json()["outcome"] == "swapped"
    after = client.get("/v1/users/7/recommendations").json()
    assert after["model"]["bundle_id"] == "second"
    assert [item["item_id"] for item in after["items"]] == [item["item_id"] for item in before["items"]]
    card = client.get("/v1/model").json()
    assert card["bundle_id"] == "second"
    assert [folder.name for folder in tried] == ["second"]
    assert card["reload"]["last_failure"] is None
    assert card["counters"]["reload.swapped"] == 1
    assert f'bundle_id="second",dataset="tiny-world",version="{card["version"]}"}} 1.0' in client.get("/metrics").text
    assert client.post("/v1/admin/reload").json()["outcome"] == "unchanged"


def test_the_alias_is_followed_without_asking(world: ServingWorld, service: Service, versions: Versions) -> None:
    settings = world.settings.model_copy(update={"reload_s": 0.05})
    champion = Champion(settings, service.store, service.metrics, service.champion.model)
    champion.start()
    champion.start()
    second = versions.make("second")
    versions.promote(second)
    until = time.monotonic() + 30
    while champion.model.version != second:
        assert time.monotonic() < until
        time.sleep(0.01)
    champion.close()
    assert service.metrics.as_dict()["reload.swapped"] == 1


def test_with_reload_s_0_nothing_is_followed(world: ServingWorld, service: Service) -> None:
    settings = world.settings.model_copy(update={"reload_s": 0.0})
    champion = Champion(settings, service.store, service.metrics, service.champion.model)
    champion.start()
    assert "follow-champion" not in {thread.name for thread in threading.enumerate()}
    champion.close()


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


@pytest.mark.parametrize("left", [1 / 3, 2 / 3])
def test_trees_cut_short_with_right_digests_are_refused_while_the_old_model_answers(
    client: httpx.Client, champion: Champion, versions: Versions, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LightGBM may end the process that reads them."""
    monkeypatch.setattr(served_model, "try_bundle", try_bundle)
    version = versions.make("cut", trees_left=left)
    versions.promote(version)
    assert champion.reload() == "refused"
    assert f"version {version} was refused (BundleError)" in str(champion.status()["last_failure"])
    assert client.get("/v1/users/3/recommendations").json()["model"]["bundle_id"] == "tiny-production"


def test_a_broken_bundle_is_refused_once_and_the_old_one_stays(
    client: httpx.Client,
    world: ServingWorld,
    champion: Champion,
    versions: Versions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its files are not those that its own sums name; the registry is made to hand them out all the same."""
    loads: list[int] = []
    load = Champion._load
    monkeypatch.setattr(Champion, "_load", lambda self, info: loads.append(info.version) or load(self, info))
    version = versions.make("altered")
    altered = tmp_path / "altered"
    (altered / "recommender.json").write_text('{"fetch": 3, "keep": 2, "rank": 1}')
    monkeypatch.setattr(Registry, "download", lambda *_, **__: altered)
    versions.promote(version)
    assert [champion._look(again=False) for _ in range(3)] == ["refused", "unchanged", "unchanged"]
    assert loads == [version]
    card = client.get("/v1/model").json()
    assert card["bundle_id"] == world.bundle_id
    assert f"version {version} was refused (BundleError)" in card["reload"]["last_failure"]
    assert str(tmp_path) not in json.dumps(card)
    assert card["counters"]["reload.refused"] == 1
    assert client.get("/v1/users/3/recommendations").status_code == 200
    assert client.post("/v1/admin/reload").json()["outcome"] == "refused"  # asked for: tried again
    assert loads == [version, version]
    versions.promote(1)
    assert champion._look(again=False) == "unchanged"
    assert client.get("/v1/model").json()["reload"]["last_failure"] is None


def test_what_cannot_be_fetched_is_tried_again(
    champion: Champion, service: Service, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.promote(versions.make("second"))

    def away(*_: object, **__: object) -> None:
        raise RegistryError("the server is away, at http://secret-host")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "resolve", away)
        assert champion._look(again=False) == "failed"
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "download", away)
        assert champion._look(again=False) == "failed"
    assert "could not be fetched (RegistryError)" in str(champion.status()["last_failure"])
    assert "secret-host" not in str(champion.status())
    assert service.metrics.as_dict()["reload.failed"] == 2
    assert champion._look(again=False) == "swapped"
    assert champion.status()["last_failure"] is None


def test_looks_become_rarer_while_the_registry_is_away(
    world: ServingWorld, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.settings.model_copy(update={"reload_s": 0.01})
    champion = Champion(settings, service.store, service.metrics, service.champion.model)
    pauses: list[float] = []

    def wait(pause_s: float) -> bool:
        pauses.append(pause_s)
        return len(pauses) > 5

    def away(*_: object) -> None:
        raise RegistryError("away")

    monkeypatch.setattr(Registry, "resolve", away)
    monkeypatch.setattr(champion._stop, "wait", wait)
    champion._follow()
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]
    monkeypatch.setattr(following, "LONGEST_PAUSE_S", 0.03)
    pauses.clear()
    champion._follow()
    assert pauses == [0.01, 0.02, 0.03, 0.03, 0.03, 0.03]


def test_a_failure_that_nobody_expected_ends_no_following(
    world: ServingWorld, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = Champion(world.settings, service.store, service.metrics, service.champion.model)
    turns = iter([False, False, True])
    monkeypatch.setattr(champion._stop, "wait", lambda _: next(turns))
    with monkeypatch.context() as broken:
        broken.setattr(Registry, "resolve", lambda *_: {}["tags"])
        champion._follow()
    assert service.metrics.as_dict()["reload.failed"] == 2
    assert "the champion could not be followed (KeyError)" in champion.status()["last_failure"]
    assert champion._look(again=False) == "unchanged"
    assert champion.status()["last_failure"] is None


def test_a_bundle_of_other_data_is_refused(champion: Champion, versions: Versions, world: ServingWorld) -> None:
    info = replace(champion.model.bundle.facts.dataset, name="other")
    versions.promote(versions.make("foreign", dataset=info))
    assert champion.reload() == "refused"
    assert champion.model.bundle.facts.bundle_id == world.bundle_id


def test_a_store_that_knows_none_of_the_items_is_refused(
    champion: Champion, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = champion.model.stats
    empty = replace(stats, n_ratings=np.zeros_like(stats.n_ratings))
    monkeypatch.setattr(service.store, "item_stats_as_of", lambda *_: empty)
    with pytest.raises(BundleError, match="knows no item of this bundle; run `recsys train --only features --force`"):
        item_stats(champion.model.catalogue, service.store, 2_000_000_000)


def test_a_model_without_an_answer_is_refused(
    champion: Champion, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.promote(versions.make("second"))
    ranked = type(champion.model.recommender).ranked_scores

    def no_numbers(self, *args):  # type: ignore[no-untyped-def]
        return np.full_like(ranked(self, *args), np.nan)

    monkeypatch.setattr(type(champion.model.recommender), "ranked_scores", no_numbers)
    assert champion.reload() == "refused"
    assert "refused (BundleError)" in str(champion.status()["last_failure"])


def test_a_model_that_was_replaced_goes_without_the_collector(champion: Champion, versions: Versions) -> None:
    """What was loaded at start is frozen, and a collection of all the rest would be felt: counts have to do."""
    numbers = [versions.make("second"), 1]
    gone: list[weakref.ref[object]] = []
    gc.collect()
    gc.disable()
    try:
        for turn in range(5):
            versions.promote(numbers[turn % 2])
            assert champion.reload() == "swapped"
            gone.append(weakref.ref(champion.model.recommender))
    finally:
        gc.enable()
    assert [reference() for reference in gone[:-1]] == [None] * 4


def test_statistics_are_read_again(
    client: httpx.Client, champion: Champion, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = champion.model
    assert champion.refresh_stats() is False
    assert champion.model is model
    newer = replace(model.stats, day=model.stats.day + 1, decayed=model.stats.decayed * 2)
    with monkeypatch.context() as patch:
        patch.setattr(service.store, "item_stats_as_of", lambda *_: newer)
        assert client.post("/v1/admin/reload").json()["outcome"] == "unchanged"
    assert champion.model.stats is newer
    assert champion.model.bundle is model.bundle
    assert client.get("/v1/model").json()["item_statistics_day"] == "2002-11-30"


def test_a_new_day_brings_new_statistics(
    world: ServingWorld, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [float(world.end)]
    champion = Champion(world.settings, service.store, service.metrics, service.champion.model, lambda: now[0])
    asked: list[float] = []
    turns = iter([False, False, False, False, True])

    def wait(_: float) -> bool:
        now[0] += 43_200.0
        return next(turns)

    def unreadable() -> bool:
        asked.append(now[0])
        raise StoreError("away")

    monkeypatch.setattr(champion._stop, "wait", wait)
    monkeypatch.setattr(champion, "refresh_stats", unreadable)
    champion._follow()
    assert len(asked) >= 2  # a day that failed is tried again
    assert "could not be followed (StoreError)" in str(champion.status()["last_failure"])


def test_answers_go_on_during_reloads(
    client: httpx.Client, world: ServingWorld, champion: Champion, versions: Versions
) -> None:
    """No request fails, and each answer is of one of the two models and of the user who asked."""
    second = versions.make("second")
    failed: list[object] = []
    stop = threading.Event()

    def ask(user_id: int) -> None:
        with httpx.Client(base_url=client.base_url, trust_env=False, timeout=30) as other:
            while not stop.is_set():
                response = other.get(f"/v1/users/{user_id}/recommendations")
                body = response.json()
                right = response.status_code == 200 and body["user_id"] == user_id and not body["degraded"]
                shown = {item["item_id"] for item in body.get("items", [])}
                if not right or shown & world.seen(user_id):
                    failed.append(body)

    asking = [threading.Thread(target=ask, args=(user_id,)) for user_id in (3, 4)]
    for thread in asking:
        thread.start()
    for turn in range(6):
        versions.promote([second, 1][turn % 2])
        champion.reload()  # or the follower was quicker
        assert champion.model.version == [second, 1][turn % 2]
    stop.set()
    for thread in asking:
        thread.join()
    assert failed == []
