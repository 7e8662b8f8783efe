"""The freshness benchmark: what its load finds, each fault planted once; what it adds up to; a short run a store."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from recsys import command
from recsys.errors import ConfigError, RecsysError
from recsys.feature_store.config import FeatureStoreConfig
from serving.bench import freshness, freshness_load, homes, target
from serving.bench.freshness import FreshnessOptions
from serving.bench.freshness_load import FreshnessPlan, FreshnessResult, Measurement
from serving.bench.homes import own_redis
from tests.stores.native import binary

from .serving_world import ServingWorld

K = 3


# -- the load, against a service that does as the test says ---------------------------------------------------------


@dataclass
class Pretender:
    """Users 1 and 2 with items 0 to 99, the unrated ones recommended in order, over HTTP.

    late     lists that still show a rated item; refuse: statuses given to ratings, in turn; forget: accepted, not kept
    """

    late: int = 0
    refuse: list[int] = field(default_factory=list)
    forget: bool = False
    degraded: list[str] = field(default_factory=list)
    key: str | None = None
    rated: dict[int, list[int]] = field(default_factory=lambda: {1: [], 2: []})
    asked: list[str] = field(default_factory=list)
    behind: dict[int, int] = field(default_factory=dict)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def answer(self, method: str, path: str, head: str, body: bytes) -> tuple[int, dict[str, Any]]:
        self.asked.append(f"{method} {path}")
        if method == "POST":
            if self.key and f"Authorization: Bearer {self.key}" not in head:
                return 401, {}
            if self.refuse and (status := self.refuse.pop(0)) != 201:
                return status, {"detail": "refused"}
            event = json.loads(body)
            items = self.rated[event["user_id"]]
            items.append(event["item_id"])
            self.behind[event["user_id"]] = self.late
            n = len(items)
            if self.forget:
                items.pop()
            return 201, {"applied": True, "n_events": n}
        user = int(path.split("/")[3])
        items = self.rated[user]
        if "/history" in path:
            return 200, {"n_events": len(items)}
        known = items
        if self.behind.get(user, 0):
            self.behind[user] -= 1
            known = items[:-1]
        left = [item for item in range(100) if item not in known][:K]
        return 200, {"degraded": self.degraded, "items": [{"item_id": item} for item in left]}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        while head := (await _head(reader)).decode():
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if "Content-Length" in line), 0)
            method, path, _ = head.split(" ", 2)
            status, body = self.answer(method, path, head, await reader.readexactly(length))
            sent = json.dumps(body).encode()
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(sent)}\r\n\r\n".encode() + sent)


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


@asynccontextmanager
async def listening(service: Pretender) -> AsyncIterator[str]:
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in service.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await asyncio.sleep(0.02)  # for the readers to see their end


def plan(url: str, **more: Any) -> FreshnessPlan:
    known: dict[str, Any] = {"read_rate": 60.0, "write_rate": 40.0, "seconds": 0.5, "k": K}
    return FreshnessPlan(url, **{**known, "readers": (1, 2), "writers": (1, 2), **more})


def measure(service: Pretender, **more: Any) -> FreshnessResult:
    async def run() -> FreshnessResult:
        async with listening(service) as url:
            return await Measurement(plan(url, **more)).run()

    return asyncio.run(run())


def test_ratings_are_seen_and_counted() -> None:
    service = Pretender()
    result = measure(service)
    events = sum(map(len, service.rated.values()))
    assert events == service.asked.count("POST /v1/events") > 5
    assert len(result.post_ms) == len(result.seen_ms) == len(result.own_ms) == result.at_once == events
    assert result.moved == 0, "the other items stay in their order here"
    assert service.rated[1] == list(range(len(service.rated[1]))), "always the first of the newest list"
    assert len(result.reads_ms) > 10
    assert result.wrong == {}
    assert all(post <= seen for post, seen in zip(result.post_ms, result.seen_ms, strict=True))


def test_without_posting_the_same_lists_are_asked_for() -> None:
    writing, quiet = Pretender(), Pretender()
    first, second = measure(writing), measure(quiet, posting=False)
    assert quiet.rated == {1: [], 2: []}
    assert second.post_ms == second.seen_ms == []
    assert len(second.own_ms) == len(first.own_ms)
    assert len(second.reads_ms) == len(first.reads_ms)
    without = [asked for asked in writing.asked if not asked.startswith("POST")]
    assert sorted(quiet.asked) == sorted(without)


def test_a_list_that_comes_late_is_asked_for_again() -> None:
    result = measure(Pretender(late=2), read_rate=1.0)
    assert result.at_once == 0
    assert (result.stale, result.unanswered) == (2 * len(result.post_ms), 0)
    assert len(result.seen_ms) == len(result.post_ms) > 5
    assert result.wrong == {}


def test_a_rating_that_no_list_shows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness_load, "UNSEEN_S", 0.05)
    result = measure(Pretender(late=1_000_000), seconds=0.2)
    assert result.wrong["not seen"] == len(result.post_ms) > 0
    assert result.seen_ms == []
    assert result.told[0].startswith("not seen: user ")


def test_a_list_made_without_the_state_shows_nothing() -> None:
    with pytest.raises(RuntimeError, match="gets no list to rate from"):
        measure(Pretender(degraded=["user_state"]))


def test_an_event_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness_load, "UNSEEN_S", 0.05)
    result = measure(Pretender(forget=True), seconds=0.2)
    assert result.wrong["history"] == 2, "each user's, once"
    assert result.wrong["count"] > 0


def test_refused_ratings_are_no_measurement() -> None:
    result = measure(Pretender(refuse=[500, 201, 503, 201]), seconds=0.4)
    assert result.wrong == {"error": 1, "not accepted": 2}, "503 asks to come back, which is no error, but no event"
    assert result.statuses["201"] == len(result.post_ms) == len(result.seen_ms)


def test_the_key_is_sent_with_ratings() -> None:
    assert measure(Pretender(key="0123456789abcdef"), api_key="0123456789abcdef").wrong == {}
    assert measure(Pretender(key="0123456789abcdef")).wrong["not accepted"] > 0


def test_a_service_that_is_gone_is_told() -> None:
    with pytest.raises(RuntimeError, match="gets no list"):
        asyncio.run(Measurement(plan("http://127.0.0.1:9")).run())


# -- what it adds up to ---------------------------------------------------------------------------------------------


def rounds(**changed: Any) -> dict[str, Any]:
    found = FreshnessResult(
        reads_ms=[4.0] * 50, post_ms=[5.0] * 50, seen_ms=[10.0] * 50, own_ms=[5.0] * 50, at_once=50, moved=40
    )
    return asdict(replace(found, **changed))


def report(writing: dict[str, Any] | None = None, quiet: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    summary = freshness.summary([writing or rounds()], [quiet or rounds(post_ms=[], seen_ms=[])])
    made: dict[str, Any] = {
        "dataset": {"label": "tiny world"},
        "model": {"bundle_id": "b", "n_items": 80},
        "options": asdict(FreshnessOptions()),
        "stores": {"sqlite": {"lists_per_s": 50.0, "ratings_per_s": 20.0, **summary}},
        "skipped": {"redis": "it is not there"},
        **more,
    }
    made["checks"] = freshness.checks(made)
    made["passed"] = all(check["passed"] for check in made["checks"])
    return made


def failing(found: dict[str, Any]) -> list[str]:
    return [check["name"] for check in found["checks"] if not check["passed"]]


def test_answers_that_were_no_lists_are_slow_not_wrong() -> None:
    found = report(rounds(at_once=48, unanswered=5))
    assert found["passed"]
    assert "50 ratings accepted, 48 in the very next answer, 0 lost or late: holds" in freshness.text(found)


def test_a_good_run_passes_and_says_so() -> None:
    found = report()
    assert (found["passed"], failing(found)) == (True, [])
    assert found["stores"]["sqlite"]["fresh"]["p99_ms"] == pytest.approx(5.0, rel=1e-3)
    assert found["stores"]["sqlite"]["whole"]["p99_ms"] == pytest.approx(10.0, rel=1e-3)
    assert found["stores"]["sqlite"]["reads"]["ratio_p99"] == pytest.approx(1.0)
    told = freshness.text(found).splitlines()
    assert "redis was not measured: it is not there" in told
    assert told[-1] == "p99 from an accepted rating to a list that knows it: 5.0 ms (sqlite); within 30 ms."


@pytest.mark.parametrize(
    ("writing", "name"),
    [
        (rounds(own_ms=[5.0] * 49 + [31.0]), "fresh"),
        (rounds(reads_ms=[4.0] * 48 + [6.1] * 2), "reads"),
        (rounds(at_once=49, stale=1), "right"),
        (rounds(wrong={"history": 1}, told=["history: user 1"]), "right"),
    ],
)
def test_each_violation_fails_its_check_alone(writing: dict[str, Any], name: str) -> None:
    found = report(writing)
    assert (found["passed"], failing(found)) == (False, [name])
    assert freshness.text(found).splitlines()[-1].endswith(f"VIOLATED: sqlite {name}.")


def test_where_nothing_was_seen_nothing_passes() -> None:
    nothing = rounds(reads_ms=[], post_ms=[], seen_ms=[], own_ms=[], at_once=0)
    found = report(nothing, nothing)
    assert failing(found) == ["fresh", "reads", "right"]
    assert "nan ms (sqlite)" in freshness.text(found)


@pytest.mark.parametrize("stores", [("sqlite", "memcached"), ()])
def test_unknown_stores_are_refused(stores: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="unknown store"):
        FreshnessOptions(stores=stores)


@pytest.mark.parametrize(("writing", "code"), [(rounds(), 0), (rounds(own_ms=[40.0]), 1)])
def test_the_command_keeps_the_report_and_judges(
    writing: dict[str, Any],
    code: int,
    world: ServingWorld,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[FreshnessOptions] = []

    def run(_settings: object, options: FreshnessOptions, *_: object) -> dict[str, Any]:
        asked.append(options)
        return report(writing)

    monkeypatch.setattr(freshness, "run", run)
    home = ("--home", str(world.home.root.parent))
    assert command.run(["bench", "freshness", "--stores", "sqlite, redis", "--limit-ms", "35", *home]) == code
    assert asked == [FreshnessOptions(stores=("sqlite", "redis"), limit_ms=35.0)]
    assert "p99 from an accepted rating to a list that knows it" in capsys.readouterr().out
    path = world.home.reports / "freshness.json"
    assert json.loads(path.read_text())["stores"]["sqlite"]["events"] == len(writing["post_ms"])
    path.unlink()


# -- stores ---------------------------------------------------------------------------------------------------------


def test_a_service_sees_the_stores_of_its_settings_alone(world: ServingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark in a copy of the home must not reach the servers of whoever starts it."""
    for name in ("RECSYS_REGISTRY_PATH", "MLFLOW_TRACKING_URI", "RECSYS_REDIS_CONNECTION"):
        monkeypatch.setenv(name, "somewhere")
    monkeypatch.setenv("RECSYS_ONLINE_STORE", "redis")
    monkeypatch.setenv("RECSYS_API_KEY", "0123456789abcdef")
    found = target._environment(world.settings)
    assert found["RECSYS_ONLINE_STORE"] == "sqlite"
    assert not {"RECSYS_REGISTRY_PATH", "MLFLOW_TRACKING_URI", "RECSYS_REDIS_CONNECTION"} & set(found)
    assert (found["RECSYS_API_KEY"], found["OMP_NUM_THREADS"]) == ("0123456789abcdef", "1")
    store = world.settings.feature_store
    redis = FeatureStoreConfig(store.home, store.repo, "redis", "127.0.0.1:1", "postgresql+psycopg://a@b/c")
    found = target._environment(world.settings.model_copy(update={"feature_store": redis, "tracking_uri": "http://m"}))
    assert found["RECSYS_REDIS_CONNECTION"] == "127.0.0.1:1"
    assert (found["RECSYS_REGISTRY_PATH"], found["MLFLOW_TRACKING_URI"]) == ("postgresql+psycopg://a@b/c", "http://m")


def test_a_missing_redis_is_skipped_or_told(world: ServingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness.shutil, "which", lambda _: None)
    monkeypatch.setattr(freshness, "STORES", ("redis",))
    said: list[str] = []
    found = freshness.run(world.settings, FreshnessOptions(), "test", said.append)
    assert found["skipped"] == {"redis": "redis-server is not on PATH; apt-get install redis-server"}
    assert said == ["freshness: redis skipped: redis-server is not on PATH; apt-get install redis-server"]
    with pytest.raises(RecsysError, match="Freshness on Redis cannot be measured"):
        freshness.run(world.settings, FreshnessOptions(stores=("redis",)), "test", said.append)


def test_a_redis_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with own_redis(wanted=False) as address:
        assert address is None
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecsysError, match="redis-server cannot be started"), own_redis():
        pass
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(RecsysError, match="redis-server did not start on port"), own_redis():
        pass
    monkeypatch.setattr(homes, "REDIS_START_S", 0.1)
    program.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    with pytest.raises(RecsysError, match="redis-server did not start on port"), own_redis():
        pass


@pytest.mark.parametrize("store", freshness.STORES)
def test_a_short_run(store: str, world: ServingWorld) -> None:
    """The real service in a process of its own; on a busy machine, so that no duration is judged."""
    if store == "redis":
        binary("redis-server", "redis-server")
    options = FreshnessOptions(
        stores=(store,), seconds=1.0, events=10.0, rate=20.0, limit_ms=60_000.0, most_ratio=60_000.0
    )
    found = freshness.run(world.settings, options, "test", lambda _: None)
    assert found["passed"], freshness.text(found)
    measured = found["stores"][store]
    assert measured["events"] == measured["fresh"]["n"] > 5
    assert measured["stale"] == 0
    assert measured["wrong"] == {}
    assert measured["reads"]["writing"]["n"] == pytest.approx(40, abs=30)
    assert measured["whole"]["p50_ms"] >= max(measured["post"]["p50_ms"], measured["fresh"]["p50_ms"])
    assert measured["list_quiet"]["n"] > 5
    assert found["dataset"]["name"] == world.home.name
    assert not world.home.events.exists(), "the user's own home was written to"
    json.dumps(found)
