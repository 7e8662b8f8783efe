"""The prediction log: what is read back is what was offered, nothing waits for it, and its folder stays bounded."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from recsys.errors import DataError
from recsys.filters import Filters
from recsys.monitoring import prediction_log
from recsys.monitoring.prediction_log import (
    DROPPED,
    FAILED,
    LOGGED,
    NONE,
    REMOVED,
    AnsweredRequest,
    PredictionLog,
    feature_columns,
    filters_of,
    read_answers,
    remove_oldest,
    sampled,
)
from recsys.recommender import Recommendations
from recsys.retrieval.merge import Candidates
from serving.observability.metrics import PREDICTIONS

NOON = 1_795_262_400.0  # 2026-11-21T12:00 UTC
HOUR = 3_600
NAMES = ("a_score", "b_rank", "popularity_7d", "mean_rating", "user_gap")


def recommendations() -> Recommendations:
    """Three of six candidates shown, one of them further down than the four that the ranker looks at."""
    rng = np.random.default_rng(0)
    item_idx, position = np.array([[4, 2, 7, 1, 5, -1]]), np.array([[2, 0, 4]])
    scores = rng.normal(size=(1, 6, 2)).astype(np.float32)
    features = rng.normal(size=(1, 4, len(NAMES))).astype(np.float32)
    features[:, 1, 2] = np.nan
    return Recommendations(
        item_ids=np.take_along_axis(item_idx, position, axis=1) * 10,
        scores=rng.normal(size=(1, 3)).astype(np.float32),
        candidates=Candidates(("a", "b"), item_idx, scores[:, :, 0], scores, np.ones((1, 6, 2), dtype=np.int32)),
        position=position,
        features=features,
        degraded=(),
        timings_ms={},
        watch_probability=rng.random((1, 3)).astype(np.float32),
        like_probability=np.full((1, 3), np.nan, dtype=np.float32),
    )


def answered(request_id: str = "call-1", received_at: float = NOON, **changed: Any) -> AnsweredRequest:
    whole = AnsweredRequest(
        request_id=request_id,
        user_id=42,
        state_seq=7,
        received_at=received_at,
        now=int(received_at),
        bundle_id="b-1",
        version=3,
        statistics_day=20_000,
        item_ids=np.array([70, 40, 50]),
        k=3,
        list_length=3,
        recommendations=recommendations(),
        feature_names=NAMES,
    )
    return replace(whole, **changed)


def written(folder: Path, *answers: AnsweredRequest, **options: Any) -> Counter[str]:
    """Log some answers and close; what was counted."""
    counts: Counter[str] = Counter()
    log = PredictionLog(folder, count=lambda name, times: counts.update({name: times}), clock=lambda: NOON, **options)
    for answer in answers:
        log.offer(answer)
    log.close()
    return +counts


def test_what_is_read_is_what_was_offered_even_if_its_arrays_change(tmp_path: Path) -> None:
    filters = Filters(genres=("Comedy",), exclude_ids=(5, 8))
    answer = answered(filters=filters, diversity=0.5, degraded=("explain", "user_state"))
    log = PredictionLog(tmp_path, clock=lambda: NOON)
    log.offer(answer)
    assert answer.recommendations is not None
    assert answer.recommendations.features is not None
    for array in (answer.item_ids, answer.recommendations.scores, answer.recommendations.features):
        array[...] = 0
    log.close()
    rows, made = read_answers(tmp_path), recommendations()
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


def test_answers_without_state_features_or_probabilities_open_as_one_table(tmp_path: Path) -> None:
    page = answered("page", state_seq=None, recommendations=None, feature_names=(), first_position=11)
    nobody = answered("nobody", user_id=None)
    long = answered("long", filters=Filters(exclude_ids=tuple(range(2_000))))
    assert written(tmp_path, answered("whole"), page, nobody, long) == {LOGGED: 4}
    rows = read_answers(tmp_path).set_index("request_id")
    assert rows.loc["page", "position"].tolist() == [11, 12, 13]
    assert rows.loc["page", "state_seq"].tolist() == [NONE] * 3
    assert rows.loc["page", [*NAMES, "score", "like_probability"]].isna().all(axis=None)
    assert rows.loc["nobody", "user_id"].tolist() == [NONE] * 3
    assert rows.loc["long", "filters"].isna().all()
    query = f"SELECT count(mean_rating) FROM read_parquet('{tmp_path}/*/*.parquet', union_by_name = true)"
    assert duckdb.sql(f"{query} WHERE request_id = 'whole'").fetchall() == [(3,)]


def test_since_reads_what_was_received_from_then_on(tmp_path: Path) -> None:
    moments = [NOON, NOON + 60, NOON + HOUR, NOON + 2 * HOUR]
    written(tmp_path, *(answered(f"at {at}", at) for at in moments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026-11-21T12", "2026-11-21T13", "2026-11-21T14"]
    assert read_answers(tmp_path, since=NOON + 60)["request_id"].nunique() == 3
    assert read_answers(tmp_path, since=NOON + 3 * HOUR).empty
    assert read_answers(tmp_path / "missing").empty


def test_a_smaller_sample_is_part_of_a_larger_one(tmp_path: Path) -> None:
    ids = [f"request-{n}" for n in range(2_000)]
    shares = {share: {each for each in ids if sampled(each, share)} for share in (0.0, 0.1, 0.5, 1.0)}
    assert shares[0.0] < shares[0.1] < shares[0.5] < shares[1.0]
    assert len(shares[0.1]) == pytest.approx(200, abs=50)
    assert written(tmp_path, answered(), share=0.0) == {}
    assert not list(tmp_path.iterdir())


def test_a_full_buffer_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "CAPACITY", 3)
    monkeypatch.setattr(prediction_log, "LOOK_S", 60.0)
    assert written(tmp_path, *(answered(f"n{n}") for n in range(10))) == {LOGGED: 3, DROPPED: 7}


@pytest.mark.parametrize("bound", [("FLUSH_ANSWERS", 2), ("FLUSH_S", 0.0)])
def test_a_part_is_written_while_the_service_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: tuple[str, float]
) -> None:
    monkeypatch.setattr(prediction_log, *bound)
    log = PredictionLog(tmp_path)
    log.offer(answered("a"))
    log.offer(answered("b"))
    until = time.monotonic() + 20
    while not list(tmp_path.glob("*/*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.02)
    log.close()
    assert read_answers(tmp_path)["request_id"].nunique() == 2


def test_a_disk_that_refuses_costs_the_part_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refusing(_path: Path) -> Iterator[Path]:
        raise OSError(28, "No space left on device")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(prediction_log, "replacing_file", refusing)
        assert written(tmp_path, answered("lost")) == {FAILED: 1}
    assert written(tmp_path, answered("kept")) == {LOGGED: 1}
    assert set(read_answers(tmp_path)["request_id"]) == {"kept"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    written(tmp_path, answered())
    (part,) = tmp_path.glob("*/*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"{part.name} cannot be read .* Move it out of the folder"):
        read_answers(tmp_path)


def hours(folder: Path) -> list[str]:
    return sorted(path.name[-2:] for path in folder.iterdir())


def test_the_oldest_files_go_first(tmp_path: Path) -> None:
    written(tmp_path, *(answered(f"n{n}", NOON + n * HOUR) for n in range(4)))
    (tmp_path / "2026-11-21T12" / ".left-by-a-killed-writer.part").write_bytes(b"x")
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*/*.parquet"))]
    assert remove_oldest(tmp_path, NOON, sum(sizes[1:]), 30.0) == 2
    assert hours(tmp_path) == ["13", "14", "15"]
    assert remove_oldest(tmp_path, NOON, sum(sizes), 30.0) == 0


def test_what_is_too_old_goes_an_hour_at_a_time_and_is_counted(tmp_path: Path) -> None:
    """A clock that is wrong for a while must not cost the whole log."""
    written(tmp_path, *(answered(f"n{n}", NOON + n * HOUR) for n in range(3)))
    assert remove_oldest(tmp_path, NOON + 86_400 + 2 * HOUR, 2**40, 1.0) == 1
    assert hours(tmp_path) == ["13", "14"]
    assert remove_oldest(tmp_path, NOON + 365 * 86_400, 2**40, 1.0) == 1
    assert written(tmp_path, answered("new"), most_days=-1.0) == {LOGGED: 1, REMOVED: 1}


def test_every_count_is_a_metric() -> None:
    assert {LOGGED, DROPPED, FAILED, REMOVED} == set(PREDICTIONS)
