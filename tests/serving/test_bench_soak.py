"""The soak test: what its checks find, each violation planted once; and how it treats the store."""

import asyncio
import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import ConfigError, StoreError
from serving.bench import soak
from serving.bench.connection import Answer
from serving.bench.outage import store_away
from serving.bench.soak import SoakOptions
from serving.bench.soak_checks import checks, text
from serving.bench.soak_load import MALFORMED, TOLD, Checker, SoakPlan, plan_from

SHED = {"type": "urn:recsys:problem:overloaded"}


def plan(**more: Any) -> SoakPlan:
    known: dict[str, Any] = {"url": "http://127.0.0.1:9", "rate": 10.0, "seconds": 1.0, "k": 2, "seen": {1: [10, 11]}}
    return SoakPlan(**{**known, "versions": [1, 2], **more})


def answer(status: int = 200, request_id: str = "soak-0", **changed: Any) -> Answer:
    body = {
        "request_id": "soak-0",
        "user_id": 1,
        "degraded": [],
        "model": {"version": 2},
        "items": [{"item_id": 20}, {"item_id": 21}],
        **changed,
    }
    return Answer(status, f"http/1.1 {status}\r\nx-request-id: {request_id}".encode(), json.dumps(body).encode(), True)


def checked(*answers: Answer) -> Any:
    checker = Checker(plan())
    for place, one in enumerate(answers):
        checker.check(one, 1, "soak-0", float(place))
    return checker.result


def test_a_right_answer_is_right() -> None:
    result = checked(answer(), answer(degraded=["ranking"]))
    assert result.wrong == {}
    assert result.told == []
    assert result.degraded == {"ranking": 1}
    assert result.versions == {"2": 2}


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (answer(user_id=2), "wrong user"),
        (answer(request_id="soak-1"), "request id"),
        ({"request_id": "soak-1"}, "request id"),
        (answer(items=[{"item_id": 20}, {"item_id": 11}]), "seen item"),
        (answer(items=[{"item_id": 20}, {"item_id": 20}]), "wrong number"),
        (answer(items=[]), "wrong number"),
        (answer(model={"version": 3}), "unknown version"),
        (answer(500, type="about:blank", detail="it failed"), "server error"),
        (answer(503, type="urn:recsys:problem:store-unavailable"), "server error"),
        (answer(429, type="urn:recsys:problem:rate-limited"), "refused"),
        (Answer(200, b"http/1.1 200\r\nx-request-id: soak-0", b"<html>", True), "not JSON"),
    ],
)
def test_each_wrong_answer_is_found(wrong: Any, kind: str) -> None:
    found = answer(**wrong) if isinstance(wrong, dict) else wrong
    result = checked(found)
    assert dict(result.wrong) == {kind: 1}
    assert result.told[0].startswith(f"{kind}: ")


def test_shed_load_is_no_violation() -> None:
    assert checked(answer(503, **SHED)).wrong == {}


def test_while_the_state_is_unreadable_seen_items_may_show() -> None:
    unreadable = answer(items=[{"item_id": 20}, {"item_id": 11}], degraded=["user_state"])
    result = checked(answer(), unreadable, unreadable, unreadable)
    assert result.wrong == {}
    assert result.unreadable == [1.0, 2.0, 3.0]


def test_violations_are_counted_beyond_those_told() -> None:
    result = checked(*[answer(user_id=2)] * (TOLD + 5))
    assert result.wrong == {"wrong user": TOLD + 5}
    assert len(result.told) == TOLD


def test_what_is_asked_depends_on_the_seed_alone() -> None:
    def asked(seed: int) -> list[str]:
        checker, said = Checker(plan(seen={user: [] for user in range(50)}, malformed=0.2, seed=seed)), []
        checker._ask_for = lambda user, *_: said.append(f"user {user}")  # type: ignore[assignment,method-assign]
        checker._ask_malformed = lambda what: said.append(what.kind)  # type: ignore[assignment,method-assign]
        for number in range(400):
            checker.ask(number, 0.0)
        assert checker.result.requests == 400
        assert 40 < checker.result.malformed < 130
        return said

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)
    assert {what.kind for what in MALFORMED} <= set(asked(1))


def test_a_service_that_is_gone_violates_every_request() -> None:
    async def run() -> Any:
        return await Checker(plan(rate=40.0, seconds=0.5, malformed=0.5)).run()

    result = asyncio.run(run())
    allowed = result.refused["oversize body: closed"]  # a refused connection looks like an early refusal
    assert result.wrong["no answer"] == result.requests - allowed > 0


def test_a_plan_survives_json() -> None:
    made = plan()
    assert plan_from(json.loads(json.dumps(asdict(made)))) == made


# -- the verdict ---------------------------------------------------------------------------------------------------


def report(**changed: Any) -> dict[str, Any]:
    result = {
        "requests": 100,
        "malformed": 2,
        "statuses": {"200": 97, "503": 1},
        "refused": {"bad JSON: 422": 2},
        "degraded": {"user_state": 3, "ranking": 1},
        "wrong": {},
        "told": [],
        "unreadable": [50.0, 56.0],
        "latency": {"p50_ms": 4.0, "p99_ms": 9.0, "max_ms": 20.0},
        "seconds": 100.0,
    }
    known: dict[str, Any] = {
        "dataset": {"label": "ml-x"},
        "options": {"reloads": 2},
        "rate": 1.0,
        "result": {**result, **changed.pop("result", {})},
        "reloads": [{"seen_after_s": 1.0}, {"seen_after_s": 2.0}],
        "counted": {"degraded.user_state": 3, "degraded.ranking": 1, "degraded.explain": 0, "reload.swapped": 2},
        "outage_s": [50.0, 55.0],
        "memory_mib": [[float(second), 500.0 + (20 if second > 50 else 0)] for second in range(100)],
    }
    return {**known, **changed}


def failing(found: dict[str, Any]) -> list[str]:
    return [check["name"] for check in checks(found) if not check["passed"]]


def test_all_holds() -> None:
    found = report()
    assert failing(found) == []
    assert [c["name"] for c in checks(found)] == [
        *("answers", "server errors", "malformed", "reloads", "degradations", "store", "memory")
    ]
    shown = text({**found, "checks": checks(found)})
    assert shown.splitlines()[-1] == "Everything held."
    assert "+4.0%" in shown


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"result": {"wrong": {"wrong user": 1}}}, "answers"),
        ({"result": {"wrong": {"server error": 1}}}, "server errors"),
        ({"result": {"wrong": {"no answer": 1}}}, "server errors"),
        ({"result": {"wrong": {"malformed accepted": 1}}}, "malformed"),
        ({"reloads": [{"seen_after_s": 1.0}, {"seen_after_s": None}]}, "reloads"),
        ({"reloads": [{"seen_after_s": 1.0}]}, "reloads"),
        ({"counted": {"degraded.user_state": 3, "degraded.ranking": 1, "reload.swapped": 1}}, "reloads"),
        ({"counted": {"degraded.user_state": 2, "degraded.ranking": 1, "reload.swapped": 2}}, "degradations"),
        ({"counted": {"degraded.user_state": 3, "reload.swapped": 2}}, "degradations"),
        ({"outage_s": None}, "store"),
        ({"result": {"unreadable": [50.0, 97.0]}}, "store"),  # one of about forty after it was back
        ({"result": {"unreadable": [20.0, 30.0]}}, "store"),  # none while it was away
        ({"memory_mib": [[float(second), 500.0 + second] for second in range(100)]}, "memory"),
        ({"memory_mib": []}, "memory"),
    ],
)
def test_each_violation_fails_its_check_alone(changed: dict[str, Any], name: str) -> None:
    found = report(**changed)
    assert failing(found) == [name]
    told = text({**found, "checks": checks(found)})
    assert told.splitlines()[-1] == f"Violated: {name}."


def test_an_outage_that_no_answer_told_is_a_violation() -> None:
    changed = {"degraded": {"ranking": 1}, "unreadable": []}
    counted = {"degraded.ranking": 1, "reload.swapped": 2}
    assert failing(report(result=changed, counted=counted)) == ["store"]


# -- what happens to the service -----------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_store_is_away_and_comes_back_as_it_was(journal: str, tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    with closing(sqlite3.connect(path)) as writer:
        writer.execute(f"pragma journal_mode={journal}")
        writer.execute('create table "a_user_state" (x integer primary key)')
        writer.execute('create index "an_index" on "a_user_state" (x)')
        writer.executemany('insert into "a_user_state" values (?)', [(i,) for i in range(1_000)])
        writer.commit()
    with closing(sqlite3.connect(path)) as reader:  # open all the time, as the service's is
        ask = 'select sum(x) from "a_user_state"'
        assert reader.execute(ask).fetchone() == (499_500,)
        with store_away(path):
            for _ in range(2):
                with pytest.raises(sqlite3.OperationalError, match="no such table"):
                    reader.execute(ask)
        assert reader.execute(ask).fetchone() == (499_500,)
        with pytest.raises(RuntimeError, match="stopped"), store_away(path):
            raise RuntimeError("stopped")
        assert reader.execute(ask).fetchone() == (499_500,)
        names = reader.execute("select name from sqlite_master order by name").fetchall()
        assert names == [("a_user_state",), ("an_index",)]


def test_a_store_that_is_not_there_cannot_be_taken_away(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no online store at .*none\.db"), store_away(tmp_path / "none.db"):
        pass


def test_reloads_need_time() -> None:
    with pytest.raises(ConfigError, match=r"20 reloads in 0\.5 minutes"):
        SoakOptions(minutes=0.5, reloads=20)


def test_a_promotion_is_waited_for_and_then_missed() -> None:
    class Serving:
        version = 1

        def card(self) -> dict[str, Any]:
            return {"version": self.version}

    target: Any = Serving()
    pending: dict[str, Any] = {"at_s": 10.0, "version": 2, "seen_after_s": None}
    assert soak._seen(target, pending, 11.0) is pending
    target.version = 2
    assert soak._seen(target, pending, 12.5) is None
    assert pending["seen_after_s"] == 2.5
    late: dict[str, Any] = {"at_s": 10.0, "version": 3, "seen_after_s": None}
    assert soak._seen(target, late, 10.0 + soak.RELOAD_LIMIT_S + 1) is None
    assert late["seen_after_s"] is None
