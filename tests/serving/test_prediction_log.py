"""The prediction log: what comes back equals what was offered, nothing waits, what is lost is counted."""

import errno
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.monitoring import prediction_files
from recsys.monitoring.prediction_files import write_parts
from recsys.monitoring.prediction_log import (
    PARTS,
    Prediction,
    log_files,
    sampled,
)
from recsys.recommender import Filters
from serving import prediction_log
from serving.prediction_log import DROPPED, FAILED, LOGGED, REMOVED, PredictionLog

from .logged_answers import (
    HOUR,
    MODEL,
    N_RETRIEVERS,
    NAMES,
    NOON,
    RANK,
    SHOWN,
    AskedFor,
    FakeCall,
    K,
    found,
    logged,
    offer,
    one,
    states,
)


def until(reached: Callable[[], bool]) -> None:
    for _ in range(500):
        if reached():
            return
        time.sleep(0.01)
    raise AssertionError("not within 5 s")


@pytest.fixture
def counts() -> Counter[str]:
    return Counter()


@pytest.fixture
def make(tmp_path: Path, counts: Counter[str]) -> Any:
    made: list[PredictionLog] = []

    def log(**options: Any) -> PredictionLog:
        options = {"flush_s": 0.05, "clock": lambda: NOON, "count": lambda name: counts.update([name]), **options}
        made.append(PredictionLog(tmp_path / "log", **options))
        return made[-1]

    yield log
    for each in made:
        each.close()


# ---- what is kept


def test_every_field_comes_back_equal_to_the_bit(make: Any, tmp_path: Path, counts: Counter[str]) -> None:
    answer = found()
    log = make()
    assert log.offer(FakeCall("r1", ["explain"]), MODEL, [42], states(), answer, SHOWN, AskedFor())
    for array in (answer.features, answer.scores, answer.candidates.retriever_scores):
        array[:] = 99.0  # the arrays of an answer may be used again
    log.close()
    (got,) = logged(tmp_path / "log")
    want = found()
    assert want.features is not None
    rows = want.features[0, [2, 0, 0]].copy()
    rows[2] = np.nan
    expected = Prediction(
        request_id="r1",
        now=778,
        received_us=int((NOON - 0.25) * 1e6),
        user_id=42,
        bundle_id="b-1",
        version=3,
        item_statistics_day=20_000,
        row=0,
        batch=1,
        k=K,
        list_length=K,
        diversity=0.0,
        filters_given=False,
        filters=None,
        degraded=("explain",),
        n_events=41,
        last_event=777,
        retriever_names=("a", "b"),
        feature_names=NAMES,
        candidate_ids=np.array([40, 20, 70, 10]),
        candidate_scores=want.candidates.retriever_scores[0, :RANK],
        candidate_ranks=want.candidates.retriever_ranks[0, :RANK],
        item_ids=np.array([70, 40, 50]),
        positions=np.array([1, 2, 3]),
        scores=want.scores[0],
        watch_probabilities=want.watch_probability[0],
        like_probabilities=want.like_probability[0],
        propensities=np.ones(3, dtype=np.float32),
        features=rows,
    )
    for name in (f.name for f in fields(Prediction)):
        left, right = getattr(got, name), getattr(expected, name)
        if isinstance(right, np.ndarray):
            assert left.dtype == right.dtype, name
            assert left.tobytes() == right.tobytes(), name
        else:
            assert left == right, name
    assert counts == {LOGGED: 1}


def test_answers_that_lack_parts(make: Any, tmp_path: Path) -> None:
    """The cold-start list, an answer without ranking, a cold user, a history that came along, a further page."""
    log = make()
    unranked = replace(found(), features=None)
    log.offer(FakeCall("cold-start", ["ranking", "retrieval"]), MODEL, [1], states(cold=True), None, SHOWN, AskedFor())
    log.offer(FakeCall("unranked", ["ranking"]), MODEL, [None], states(), unranked, SHOWN, AskedFor())
    header: Any = SimpleNamespace(user_id=42, version=3, bundle_id="b-1")
    log.offer_page(FakeCall("page"), header, np.array([30, 60]), 11, 2)
    log.close()
    cold, plain, page = logged(tmp_path / "log")
    assert (cold.n_events, cold.last_event, cold.features, len(cold.candidate_ids)) == (0, None, None, 0)
    assert np.isnan(cold.scores).all()
    assert cold.item_ids.tolist() == [70, 40, 50]
    assert (plain.user_id, plain.features, plain.feature_names) == (None, None, ())
    assert plain.candidate_ids.tolist() == [40, 20, 70, 10, 50]
    assert plain.candidate_scores.shape == (5, N_RETRIEVERS)
    assert (page.n_events, page.user_id, page.positions.tolist()) == (None, 42, [11, 12])


def test_a_batch_is_a_row_for_each_user(make: Any, tmp_path: Path) -> None:
    log = make()
    drawn = [np.array([0.5, 0.25, 1.0], dtype=np.float32)] * 2
    log.offer(FakeCall("both"), MODEL, [42, 43], states(2), found(2), SHOWN * 2, AskedFor(), drawn)
    log.close()
    got = logged(tmp_path / "log")
    assert [(p.user_id, p.row, p.batch) for p in got] == [(42, 0, 2), (43, 1, 2)]
    assert got[1].scores.tobytes() == found(2).scores[1].tobytes()
    assert got[1].propensities.tolist() == [0.5, 0.25, 1.0]


def test_filters_are_kept_as_json_unless_they_are_long(make: Any, tmp_path: Path) -> None:
    log = make()
    offer(log, "short", filters=Filters(genres=("Drama",), year_from=1990))
    offer(log, "long", filters=Filters(exclude_ids=tuple(range(5_000))))
    log.close()
    short, long = logged(tmp_path / "log")
    assert short.filters_given
    assert json.loads(short.filters or "") == {
        **{"genres": ["Drama"], "year_from": 1990, "year_to": None, "exclude_ids": [], "min_ratings": 0}
    }
    assert (long.filters_given, long.filters) == (True, None)


def test_the_sample_is_decided_by_the_request_alone(make: Any, tmp_path: Path) -> None:
    log = make(share=0.3)
    ids = [f"request-{i}" for i in range(300)]
    taken = [offer(log, i) for i in ids]
    assert not log.offer_page(FakeCall("5b1f0c9e"), MODEL, np.array([30]), 2, 1)  # see the doctest of `sampled`
    log.close()
    assert taken == [sampled(i, 0.3) for i in ids]
    assert 60 < sum(taken) < 120
    assert [p.request_id for p in logged(tmp_path / "log")] == [i for i, t in zip(ids, taken, strict=True) if t]
    assert all(sampled(i, 0.5) for i, t in zip(ids, taken, strict=True) if t)


# ---- what may be lost, and is counted


def test_a_full_queue_drops_and_does_not_wait(
    make: Any, tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_disk, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        at_disk.set()
        assert go_on.wait(10)
        return write_parts(*arguments)

    monkeypatch.setattr(prediction_log, "write_parts", slow)
    log = make(capacity=3, flush_rows=1)
    assert offer(log, "first")
    assert at_disk.wait(5)
    assert [offer(log, f"r{i}") for i in range(5)] == [True, True, True, False, False]
    assert counts[DROPPED] == 2
    go_on.set()
    log.close()
    assert [p.request_id for p in logged(tmp_path / "log")] == ["first", "r0", "r1", "r2"]
    assert counts == {LOGGED: 4, DROPPED: 2}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("a bug")])
def test_what_cannot_be_written_is_counted_and_the_log_goes_on(
    error: Exception, make: Any, tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(prediction_log, "write_parts", full)
    log = make()
    offer(log, "lost")
    until(lambda: counts[FAILED] == 1)
    monkeypatch.setattr(prediction_log, "write_parts", write_parts)
    offer(log, "kept")
    log.close()
    assert [p.request_id for p in logged(tmp_path / "log")] == ["kept"]
    assert counts == {FAILED: 1, LOGGED: 1}


def test_an_answer_that_is_no_parquet_takes_no_other_with_it(
    make: Any, tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(folder: Path, rows: list[Any], name: str) -> Any:
        if any(row.request_id == "bad" for row in rows):
            raise OverflowError("Python int too large to convert to C long")
        return write_parts(folder, rows, name)

    monkeypatch.setattr(prediction_log, "write_parts", picky)
    log = make(flush_s=60.0)
    names = [*(f"r{i}" for i in range(5)), "bad", *(f"s{i}" for i in range(4))]
    for name in names:
        offer(log, name)
    log.close()
    assert sorted(p.request_id for p in logged(tmp_path / "log")) == sorted(set(names) - {"bad"})
    assert counts == {FAILED: 1, LOGGED: 9}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = pq.ParquetWriter
    monkeypatch.setattr(
        prediction_files.pq, "ParquetWriter", lambda _path, *rest, **more: writer("/dev/full", *rest, **more)
    )
    with pytest.raises(OSError, match="No space left"):
        write_parts(tmp_path, [one("r1")], "x")
    assert not list((tmp_path / PARTS).iterdir())


@pytest.mark.parametrize("fails", ["merge_finished_hours", "remove_oldest"])
def test_tidying_that_fails_is_counted_and_the_other_half_is_done(
    fails: str, make: Any, tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError("no")

    monkeypatch.setattr(prediction_log, fails, refuse)
    now = [NOON]
    log = make(clock=lambda: now[0], most_bytes=1)
    offer(log, "r1")
    until(lambda: counts[LOGGED] == 1)
    now[0] = NOON + 2 * HOUR
    log.close()
    removed = fails == "merge_finished_hours"
    assert counts == {LOGGED: 1, FAILED: 1, **({REMOVED: 1} if removed else {})}
    assert [p.name for p in log_files(tmp_path / "log")] == ([] if removed else ["predictions-2026-11-21T11.parquet"])


def test_an_answer_that_is_no_parquet_doubles_none_of_another_hour(
    make: Any, tmp_path: Path, counts: Counter[str]
) -> None:
    now = [NOON]
    log = make(clock=lambda: now[0], flush_s=60.0)
    offer(log, "a")
    offer(log, "b")
    now[0] = NOON + HOUR
    offer(log, "c")
    bad: Any = SimpleNamespace(**{**vars(MODEL), "version": 2**70})
    log.offer(FakeCall("bad"), bad, [42], states(), found(), SHOWN, AskedFor())
    log.close()
    assert sorted(p.request_id for p in logged(tmp_path / "log")) == ["a", "b", "c"]
    assert counts == {FAILED: 1, LOGGED: 3}


def test_filters_that_are_no_json_do_not_end_the_log(make: Any, tmp_path: Path, counts: Counter[str]) -> None:
    log = make()
    anything: Any = object()
    offer(log, "bad", filters=Filters(genres=(anything,)))
    until(lambda: counts[FAILED] == 1)
    offer(log, "kept")
    until(lambda: counts[LOGGED] == 1)
    log.close()
    assert [p.request_id for p in logged(tmp_path / "log")] == ["kept"]
    assert counts == {FAILED: 1, LOGGED: 1}


CHILD = """
import os, signal, sys, time
from pathlib import Path
from tests.serving.logged_answers import offer
from serving.prediction_log import PredictionLog
log = PredictionLog(Path(sys.argv[1]), flush_s=0.3, flush_rows=40)
for i in range(400):
    offer(log, f"r{i:03}")
    print(f"r{i:03} {time.monotonic()}", flush=True)
    time.sleep(0.004)
    if i == 300:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_at_most_what_was_offered_just_before(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "log")], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    offered = [line.split() for line in done.stdout.splitlines()]
    kept = {p.request_id for p in logged(tmp_path / "log")}
    lost = [float(moment) for request_id, moment in offered if request_id not in kept]
    assert kept
    assert lost, "the last answers had no time to be written"
    killed = float(offered[-1][1])
    assert killed - min(lost) < 0.3 + prediction_log.LOOK_S + 0.5  # the last term: a busy machine
    assert not list((tmp_path / "log").rglob(".*.parquet*.part.parquet"))


def test_the_writer_merges_and_removes_by_itself(make: Any, tmp_path: Path, counts: Counter[str]) -> None:
    now = [NOON]
    log = make(clock=lambda: now[0])
    offer(log, "a")
    until(lambda: counts[LOGGED] == 1)
    now[0] = NOON + 2 * HOUR
    log.close()
    assert [p.name for p in log_files(tmp_path / "log")] == ["predictions-2026-11-21T11.parquet"]
    make(most_bytes=1).close()
    assert counts == {LOGGED: 1, REMOVED: 1}
    assert not log_files(tmp_path / "log")
