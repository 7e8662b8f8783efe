"""The prediction log: what is read back is what was offered, nothing waits for it, and its folder stays bounded."""

import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from recsys.atomic_io import replacing_file
from recsys.errors import DataError
from recsys.filters import Filters
from recsys.monitoring import prediction_log
from recsys.monitoring.prediction_log import (
    DROPPED,
    FAILED,
    LOGGED,
    NONE,
    REMOVED,
    PredictionLog,
    feature_columns,
    filters_of,
    read_answers,
    remove_oldest,
    sampled,
)
from serving.observability.metrics import PREDICTIONS
from tests.monitoring.made_up_answers import HOUR, NAMES, NOON, answered, found


def logged(folder: Path, **options: Any) -> pd.DataFrame:
    parts = list(read_answers(folder, **options))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def written(folder: Path, *answers: Any, **options: Any) -> Counter[str]:
    """Log some answers and close; what was counted."""
    counts: Counter[str] = Counter()
    log = PredictionLog(folder, count=lambda name, times: counts.update({name: times}), clock=lambda: NOON, **options)
    for answer in answers:
        log.offer(answer)
    log.close()
    return counts


def test_what_is_read_is_what_was_offered(tmp_path: Path) -> None:
    filters = Filters(genres=("Comedy",), exclude_ids=(5, 8))
    answer = answered(filters=filters, diversity=0.5, degraded=("explain", "user_state"))
    assert written(tmp_path, answer) == {LOGGED: 1}
    rows = logged(tmp_path)
    made = found()
    assert made.features is not None
    assert rows["item_id"].tolist() == [70, 40, 50]
    assert rows["position"].tolist() == [1, 2, 3]
    assert feature_columns(rows) == list(NAMES)
    assert rows["score"].to_numpy().tobytes() == made.scores[0].tobytes()
    assert rows["watch_probability"].to_numpy().tobytes() == made.watch_probability[0].tobytes()
    features = rows[list(NAMES)].to_numpy(np.float32)
    assert features[:2].tobytes() == made.features[0, [2, 0]].tobytes()
    assert np.isnan(features[2]).all(), "further down than the ranker looks"
    first = rows.iloc[0]
    assert (first["request_id"], first["user_id"], first["state_seq"], first["version"]) == ("call-1", 42, 7, 3)
    assert (first["bundle_id"], first["statistics_day"], first["statistics_seq"]) == ("b-1", 20_000, NONE)
    assert first["received"] == pd.Timestamp(NOON, unit="s", tz="UTC")
    assert filters_of(first["filters"]) == filters
    assert (first["degraded"], first["diversity"]) == ("explain,user_state", 0.5)


def test_the_arrays_of_an_answer_may_be_used_again(tmp_path: Path) -> None:
    answer = answered()
    log = PredictionLog(tmp_path)
    log.offer(answer)
    assert answer.recommendations is not None
    assert answer.recommendations.features is not None
    for array in (answer.item_ids, answer.recommendations.scores, answer.recommendations.features):
        array[...] = 0
    log.close()
    rows = logged(tmp_path)
    assert rows["item_id"].tolist() == [70, 40, 50]
    assert (rows["score"] != 0).all()


def test_answers_without_state_features_or_probabilities(tmp_path: Path) -> None:
    page = answered("page", state_seq=None, recommendations=None, feature_names=(), first_position=11)
    nobody = answered("nobody", user_id=None)
    long = answered("long", filters=Filters(exclude_ids=tuple(range(2_000))))
    assert written(tmp_path, answered("whole"), page, nobody, long) == {LOGGED: 4}
    rows = logged(tmp_path).set_index("request_id")
    assert rows.loc["page", "position"].tolist() == [11, 12, 13]
    assert rows.loc["page", "state_seq"].tolist() == [NONE] * 3
    assert rows.loc["page", [*NAMES, "score", "like_probability"]].isna().all(axis=None)
    assert rows.loc["nobody", "user_id"].tolist() == [NONE] * 3
    assert rows.loc["long", "filters"].isna().all()


def test_any_reader_of_parquet_opens_the_folder(tmp_path: Path) -> None:
    written(tmp_path, answered("a"), answered("b", NOON + HOUR, recommendations=None, feature_names=()))
    query = f"SELECT request_id, count(mean_rating) FROM read_parquet('{tmp_path}/*/*.parquet', union_by_name = true)"
    assert sorted(duckdb.sql(f"{query} GROUP BY request_id").fetchall()) == [("a", 3), ("b", 0)]


def test_since_reads_what_was_received_from_then_on(tmp_path: Path) -> None:
    moments = [NOON, NOON + 60, NOON + HOUR, NOON + 2 * HOUR]
    written(tmp_path, *(answered(f"at {at}", at) for at in moments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026-11-21T12", "2026-11-21T13", "2026-11-21T14"]
    assert logged(tmp_path, since=NOON + 60)["request_id"].nunique() == 3
    assert logged(tmp_path, since=NOON + 3 * HOUR).empty
    assert logged(tmp_path / "missing").empty


def test_parts_of_whole_answers_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, *(answered(f"n{n}") for n in range(10)), flush_answers=2)
    monkeypatch.setattr(prediction_log, "ROWS_AT_ONCE", 7)
    assert [len(part) for part in read_answers(tmp_path)] == [12, 12, 6]


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    ids = [f"request-{n}" for n in range(2_000)]
    shares = {share: {each for each in ids if sampled(each, share)} for share in (0.0, 0.1, 0.5, 1.0)}
    assert shares[0.0] < shares[0.1] < shares[0.5] < shares[1.0]
    assert len(shares[0.1]) == pytest.approx(200, abs=50)
    assert written(tmp_path, answered(), share=0.0) == {}
    assert not list(tmp_path.iterdir())


def test_a_full_buffer_drops_and_counts(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    log = PredictionLog(tmp_path, capacity=3, count=lambda name, times: counts.update({name: times}))
    began = time.monotonic()
    taken = [log.offer(answered(f"n{n}")) for n in range(10)]
    if time.monotonic() - began < prediction_log.LOOK_S:  # else the thread may have written some of them
        assert taken == [True] * 3 + [False] * 7
    log.close()
    assert counts == {LOGGED: sum(taken), DROPPED: 10 - sum(taken)}


@pytest.mark.parametrize("options", [{"flush_answers": 2}, {"flush_s": 0.0}], ids=["many answers", "time"])
def test_a_part_is_written_while_the_service_runs(tmp_path: Path, options: dict[str, float]) -> None:
    log = PredictionLog(tmp_path, **options)  # type: ignore[arg-type]
    log.offer(answered("a"))
    log.offer(answered("b"))
    until = time.monotonic() + 20
    while not list(tmp_path.glob("*/*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.02)
    log.close()
    assert logged(tmp_path)["request_id"].nunique() == 2


def test_a_disk_that_refuses_costs_the_part_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = threading.Event()
    broken.set()

    def refusing(path: Path) -> Any:
        if broken.is_set():
            raise OSError(28, "No space left on device")
        return replacing_file(path)

    monkeypatch.setattr(prediction_log, "replacing_file", refusing)
    assert written(tmp_path, answered("lost")) == {FAILED: 1}
    broken.clear()
    assert written(tmp_path, answered("kept")) == {LOGGED: 1}
    assert set(logged(tmp_path)["request_id"]) == {"kept"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    written(tmp_path, answered())
    (part,) = tmp_path.glob("*/*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{part.name} cannot be read .* Move it out of the folder"):
        logged(tmp_path)


def hours(folder: Path) -> list[int]:
    return sorted(datetime.strptime(path.name, "%Y-%m-%dT%H").replace(tzinfo=UTC).hour for path in folder.iterdir())


def test_the_oldest_files_go_first(tmp_path: Path) -> None:
    written(tmp_path, *(answered(f"n{n}", NOON + n * HOUR) for n in range(4)))
    (tmp_path / "2026-11-21T12" / ".left-by-a-killed-writer.part").write_bytes(b"x")
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*/*.parquet"))]
    assert remove_oldest(tmp_path, NOON, sum(sizes[1:]), 30.0) == 2
    assert hours(tmp_path) == [13, 14, 15]
    assert remove_oldest(tmp_path, NOON, sum(sizes), 30.0) == 0


def test_what_is_too_old_goes_an_hour_at_a_time(tmp_path: Path) -> None:
    """A clock that is wrong for a while must not cost the whole log."""
    written(tmp_path, *(answered(f"n{n}", NOON + n * HOUR) for n in range(3)))
    assert remove_oldest(tmp_path, NOON + 86_400 + 2 * HOUR, 2**40, 1.0) == 1
    assert hours(tmp_path) == [13, 14]
    assert remove_oldest(tmp_path, NOON + 365 * 86_400, 2**40, 1.0) == 1


def test_the_service_bounds_its_folder_and_counts_what_goes(tmp_path: Path) -> None:
    written(tmp_path, answered("old", NOON - 40 * 86_400), most_days=50.0)
    assert written(tmp_path, answered("new"))[REMOVED] == 1
    assert set(logged(tmp_path)["request_id"]) == {"new"}


def test_every_count_is_a_metric() -> None:
    assert {LOGGED, DROPPED, FAILED, REMOVED} == set(PREDICTIONS)
