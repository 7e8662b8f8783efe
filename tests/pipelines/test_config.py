"""Tuned settings as defaults: what they change, what they must not name, and when a training uses them.

Stage: tests. Absent: the rules that follow the data's size, and the search.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines.config
from pipelines.config import PipelineConfig, config_for, read_tuned, tuned_path, with_tuned
from pipelines.training import open_job
from pipelines.training import train as train_job
from recsys.atomic_io import read_json, write_json
from recsys.data.datasets import DATASETS
from recsys.errors import ConfigError
from recsys.ranking.training import RankerSettings
from recsys.retrieval.two_tower_training import TowerSettings
from recsys.settings import read_settings
from tests.conftest import TrainedHome
from tests.planted import planted_tables


@pytest.fixture(scope="module")
def home(trained_home: TrainedHome, tmp_path_factory: pytest.TempPathFactory) -> TrainedHome:
    """A copy whose record of the retriever may be rewritten."""
    root = tmp_path_factory.mktemp("config") / "home"
    shutil.copytree(trained_home.root, root)
    return TrainedHome(root, trained_home.raw)


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Path]:
    """Writes the tuned settings of ml-100k, in a folder of the test's own."""
    monkeypatch.setattr(pipelines.config, "TUNED", tmp_path)

    def write(value: Any) -> Path:
        path = tuned_path("ml-100k")
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return write


def searched(fingerprint: str) -> dict[str, Any]:
    """What a file must say of its data."""
    return {"about": {"data": {"fingerprint": fingerprint}}}


def laid_over(path: Path, seed: int = 7) -> PipelineConfig:
    return with_tuned(config_for(planted_tables().events, seed=seed), read_tuned(path))


def test_tuned_settings_lie_over_the_rules(tuned: Callable[[Any], Path]) -> None:
    path = tuned(
        {
            "retrievers": {"ease": {"power": 0.5}, "ials": {"dim": 64, "alpha": 2}},
            "rrf_weights": {"ease": 0.7},
            "ranker": {"leaves": 9},
            "tower": {"dropout": 0.3},
            **searched("0" * 64),
        }
    )
    rules, over = config_for(planted_tables().events, seed=3), laid_over(path, seed=3)
    assert over.tuned == "ml-100k"
    assert rules.tuned is None
    assert over.retrievers["ease"] == {**rules.retrievers["ease"], "power": 0.5}
    assert over.retrievers["ials"] == {**rules.retrievers["ials"], "dim": 64, "alpha": 2.0}
    assert type(over.retrievers["ials"]["alpha"]) is float, "a whole number may stand for a float"
    assert over.retrievers["popularity"] == rules.retrievers["popularity"]
    assert over.recommender.rrf_weights == {**rules.recommender.rrf_weights, "ease": 0.7}
    assert over.ranker == replace(RankerSettings(), seed=3, leaves=9)
    assert isinstance(over.tower, TowerSettings)
    assert over.tower == replace(rules.tower, dropout=0.3)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"retriever": {}}, r"ml-100k.json: there is no setting retriever to tune; known are retrievers, rrf_weights"),
        ({"retrievers": {"als": {}}}, r"ml-100k.json: there is no setting retrievers.als to tune; known are ease"),
        (
            {"retrievers": {"ease": {"lambda": 1}}},
            r"no setting retrievers.ease.lambda to tune; known are regularisation, power",
        ),
        ({"rrf_weights": {"als": 1}}, r"no setting rrf_weights.als to tune; known are two_tower"),
        ({"ranker": {"leafs": 7}}, r"no setting ranker.leafs to tune; known are .*leaves"),
        ({"tower": {"seed": 7}}, r"no setting tower.seed to tune; known are dim"),
        (
            {"ranker": {"objective": "lambdarank"}},
            r"no setting ranker.objective to tune; known are max_trees, (?!objec)",
        ),
        ({"ranker": {"start_from_logistic": 1}}, r"no setting ranker.start_from_logistic to tune"),
        ({"tower": {"negatives": 1}}, r"no setting tower.negatives to tune"),
        ({"ranker": {"leaves": 7.0}}, r"ml-100k.json: ranker.leaves must be a whole number, not 7.0"),
        ({"retrievers": {"ials": {"dim": 64.5}}}, r"retrievers.ials.dim must be a whole number, not 64.5"),
        (
            {"retrievers": {"ease": {"power": float("nan")}}},
            r"retrievers.ease.power must be finite and at least 0, not nan",
        ),
        ({"tower": {"dropout": float("inf")}}, r"tower.dropout must be finite and at least 0, not inf"),
        ({"rrf_weights": {"ease": -0.1}}, r"ml-100k.json: rrf_weights.ease must be finite and at least 0, not -0.1"),
        ({"rrf_weights": {"ease": 10**400}}, r"rrf_weights.ease must be finite and at least 0"),
        ({"tower": {"dim": 33}}, r"ml-100k.json: two-tower: dim 33 cannot be divided"),
        ({"ranker": {"leaves": "7"}}, r"ml-100k.json: ranker.leaves must be a number, not '7'"),
        ({"rrf_weights": {"ease": True}}, r"rrf_weights.ease must be a number, not True"),
        ({"retrievers": {"ease": 7}}, r"retrievers.ease must be an object with settings, not 7"),
    ],
)
def test_a_bad_setting_is_named_with_its_file(value: Any, said: str, tuned: Callable[[Any], Path]) -> None:
    path = tuned({**searched("0" * 64), **value})
    with pytest.raises(ConfigError, match=said):
        laid_over(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], r"ml-100k.json: the file must be an object with settings, not \[\]"),
        ({}, r"ml-100k.json: about.data.fingerprint must name the data that were searched"),
        ({"about": 7}, r"ml-100k.json: about must be an object with settings, not 7"),
        ({"about": {"data": "ml-100k"}}, r"ml-100k.json: data must be an object with settings, not 'ml-100k'"),
        ({"about": {"data": {"fingerprint": None}}}, r"about.data.fingerprint must name the data"),
    ],
)
def test_a_file_must_say_which_data_were_searched(value: Any, said: str, tuned: Callable[[Any], Path]) -> None:
    path = tuned(value)
    with pytest.raises(ConfigError, match=said):
        read_tuned(path)


def test_what_is_checked_in_can_be_used() -> None:
    paths = sorted(pipelines.config.TUNED.glob("*"))
    assert paths
    for path in paths:
        assert path.suffix == ".json"
        assert path.stem in DATASETS
        found, over = read_tuned(path), laid_over(path)
        assert len(found.fingerprint) == 64
        assert over.tuned == path.stem
        assert over.retrievers == {**config_for(planted_tables().events).retrievers, **found.content["retrievers"]}
        assert found.content.get("rrf_weights", {}).items() <= over.recommender.rrf_weights.items()


def test_a_file_that_is_no_json_is_named(tuned: Callable[[Any], Path]) -> None:
    path = tuned({})
    for broken in (b"{", b"\xff"):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match=r"ml-100k.json is no JSON: .*search again"):
            read_tuned(path)


@pytest.fixture
def said(home: TrainedHome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Opens the home's data under another name and begins a training, whose stages do not run here; gives the power of
    EASE and what was printed."""
    monkeypatch.setattr("pipelines.training.run_stages", lambda *_, **__: None)

    def train(named: str, synthetic: bool, **options: Any) -> tuple[float, str]:
        record = home.dataset.data / "dataset.json"
        kept = read_json(record)
        write_json(record, {**kept, "name": named, "synthetic": synthetic})
        try:
            job = open_job(home.name, read_settings(home.root), **options)
        finally:
            write_json(record, kept)
        train_job(job)
        return job.config.retrievers["ease"]["power"], capsys.readouterr().err

    return train


def fingerprint_of(home: TrainedHome) -> str:
    return str(read_json(home.dataset.data / "dataset.json")["fingerprint"])


def test_train_says_that_it_uses_tuned_settings(
    home: TrainedHome, tuned: Callable[[Any], Path], said: Callable[..., Any]
) -> None:
    tuned({"retrievers": {"ease": {"power": 0.5}}, **searched(fingerprint_of(home))})
    power, line = said("ml-100k", False)
    assert power == 0.5
    assert line.startswith("settings: tuned for ml-100k (docs/tuning.md); --no-tuned leaves them aside\n")
    for named, synthetic, options in (
        ("ml-100k", False, {"tuned": False}),
        ("ml-100k", True, {}),
        ("ml-1m", False, {}),
    ):
        power, line = said(named, synthetic, **options)
        assert power == 0.95
        assert "settings:" not in line


def test_settings_that_were_searched_on_other_data_are_left_aside(
    tuned: Callable[[Any], Path], said: Callable[..., Any]
) -> None:
    """The name is the same, the files are not."""
    path = tuned({"retrievers": {"ease": {"power": 0.5}}, **searched("1" * 64)})
    power, line = said("ml-100k", False)
    assert power == 0.95
    assert line.startswith(f"settings: {path} was searched on other data than this ml-100k; the rules hold")
    assert line.count("settings:") == 1


def test_a_bad_file_stops_a_training_before_it_begins(
    home: TrainedHome, tuned: Callable[[Any], Path], said: Callable[..., Any]
) -> None:
    tuned({"retrievers": {"ease": {"power": -1}}, **searched(fingerprint_of(home))})
    with pytest.raises(ConfigError, match=r"ml-100k.json: retrievers.ease.power"):
        said("ml-100k", False)
