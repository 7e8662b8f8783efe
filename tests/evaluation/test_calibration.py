"""Reliability of the probabilities: by hand, by loops over a replay, and on outcomes whose probability is known."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys.evaluation.calibration import (
    BINS,
    Calibration,
    Predicted,
    Reliability,
    calibration_markdown,
    calibration_png,
    equal_mass_bins,
    reliability,
    write_calibration,
)
from tests.evaluation.leaderboards import PNG, study_run


def test_measures_by_hand() -> None:
    predicted, happened = np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, True, False, True])
    assert asdict(replace(reliability(predicted, happened), bins=())) == {
        "n": 4,
        "base_rate": 0.5,
        "mean_probability": pytest.approx(0.45),
        "ece": pytest.approx((0.1 + 0.8 + 0.6 + 0.1) / 4),  # four examples, four bins
        "log_loss": pytest.approx(-(math.log(0.9 * 0.2 * 0.4 * 0.9)) / 4),
        "log_loss_constant": pytest.approx(math.log(2)),
        "brier": pytest.approx((0.1**2 + 0.8**2 + 0.6**2 + 0.1**2) / 4),
        "brier_constant": 0.25,
        "auc": 0.75,
        "bins": (),
    }


def test_bins_hold_equally_many_neighbours() -> None:
    rng = np.random.default_rng(0)
    predicted, happened = rng.random(47), rng.random(47) < 0.3
    bins = equal_mass_bins(predicted, happened)
    assert [b.n for b in bins] == [4, 4] + [3] * 13
    order = np.argsort(predicted)
    for b, part in zip(bins, np.split(order, np.cumsum([b.n for b in bins])[:-1]), strict=True):
        assert b.mean_probability == pytest.approx(predicted[part].mean())
        assert b.share == pytest.approx(happened[part].mean())
    assert len(bins) == BINS


def test_nothing_measured_is_none_and_drawn_as_such() -> None:
    nothing = Predicted().measured(study_run())
    assert (nothing.watch, nothing.like, nothing.n_events_not_ranked) == (Reliability(0), Reliability(0), 0)
    assert re.search(r"\| P\(like\) +\| +0 \| +n/a \|", calibration_markdown(nothing))
    assert calibration_png(nothing).startswith(PNG)


def test_events_of_one_second_and_what_is_not_ranked() -> None:
    """Two contexts, written out: user 1 watches two items at once, one of them not ranked; user 2 one outside."""
    answer: Any = SimpleNamespace(
        item_ids=np.array([[10, 11, 12], [10, 11, -1]]),
        watch_probability=np.array([[0.5, 0.25, np.nan], [0.125, 0.0625, np.nan]], dtype=np.float32),
        like_probability=np.array([[0.75, 0.5, np.nan], [0.5, 0.5, np.nan]], dtype=np.float32),
    )
    predicted = Predicted()
    predicted.observe(answer, np.array([0, 1, 0]), np.array([10, 99, 12]), np.array([5.0, 5.0, 3.5], np.float32))
    measured = predicted.measured(study_run())
    watched = [(b.mean_probability, b.share) for b in measured.watch.bins]
    assert watched == [(0.0625, 0.0), (0.125, 0.0), (0.25, 0.0), (0.5, 1.0)]
    assert [(b.mean_probability, b.share) for b in measured.like.bins] == [(0.75, 1.0)]
    assert measured.n_events_not_ranked == 2


def test_files_are_written_and_name_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    watch = reliability(rng.random(100), rng.random(100) < 0.5)
    measured = Calibration(study_run("worlds", synthetic=True), watch, Reliability(0), 0)
    assert write_calibration(tmp_path, measured) == (tmp_path / "calibration.png").read_bytes()
    kept = json.loads((tmp_path / "calibration.json").read_text())
    assert (kept["run"]["data"]["name"], kept["watch"]["ece"]) == ("worlds", watch.ece)
    text = (tmp_path / "calibration.md").read_text()
    assert text.startswith("# Calibration on worlds (synthetic, not MovieLens)")
    assert text.endswith("|\n\nMeasured: command: recsys train; bundle: b1.\n")
