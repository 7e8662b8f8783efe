"""Tuned settings as defaults: what they change, what they must not name, and when a training uses them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines.config
from pipelines.config import PipelineConfig, config_for, read_tuned, tuned_path, with_tuned
from pipelines.pipeline import open_pipeline
from pipelines.stages import train
from recsys.data.datasets import DATASETS
from recsys.data.tables import save_tables
from recsys.errors import ConfigError
from recsys.ranking.training import RankerSettings
from recsys.settings import Settings
from recsys.workspace import Workspace
from tests.planted import planted_tables

FINGERPRINT = planted_tables().info.fingerprint
Write = Callable[..., Path]


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the tuned settings of ml-100k, searched on data of a fingerprint, in a folder of the test's own."""
    monkeypatch.setattr(pipelines.config, "TUNED", tmp_path)

    def write(value: Any, fingerprint: str = FINGERPRINT) -> Path:
        path = tuned_path("ml-100k")
        path.write_text(json.dumps({"about": {"data": {"fingerprint": fingerprint}}, **value}), encoding="utf-8")
        return path

    return write


def laid_over(path: Path) -> PipelineConfig:
    return with_tuned(config_for(planted_tables().events, seed=3), read_tuned(path))


def test_tuned_settings_lie_over_the_rules(tuned: Write) -> None:
    path = tuned(
        {
            "retrievers": {"ease": {"power": 0.5}, "ials": {"dim": 64, "alpha": 2}},
            "rrf_weights": {"ease": 0.7},
            "ranker": {"leaves": 9},
            "tower": {"dropout": 0.3},
        }
    )
    rules, over = config_for(planted_tables().events, seed=3), laid_over(path)
    assert (rules.tuned, over.tuned) == (None, "ml-100k")
    assert over.retrievers["ease"] == {**rules.retrievers["ease"], "power": 0.5}
    assert over.retrievers["ials"] == {**rules.retrievers["ials"], "dim": 64, "alpha": 2.0}
    assert type(over.retrievers["ials"]["alpha"]) is float, "a whole number may stand for a float"
    assert over.retrievers["popularity"] == rules.retrievers["popularity"]
    assert over.recommender.rrf_weights == {**rules.recommender.rrf_weights, "ease": 0.7}
    assert over.ranker == replace(RankerSettings(), seed=3, leaves=9)
    assert over.tower == replace(rules.tower, dropout=0.3)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"retriever": {}}, "there is no setting retriever to tune"),
        ({"retrievers": {"als": {}}}, "there is no setting retrievers.als to tune"),
        ({"retrievers": {"ease": {"lambda": 1}}}, "there is no setting retrievers.ease.lambda to tune"),
        ({"ranker": {"objective": "lambdarank"}}, "there is no setting ranker.objective to tune"),
        ({"tower": {"seed": 7}}, "there is no setting tower.seed to tune"),
        ({"ranker": {"leaves": 7.0}}, "ranker.leaves must be a whole number of at least 0, not 7.0"),
        ({"retrievers": {"ease": {"power": float("nan")}}}, "retrievers.ease.power must be a finite number"),
        ({"tower": {"dropout": float("inf")}}, "tower.dropout must be a finite number of at least 0, not inf"),
        ({"rrf_weights": {"ease": -0.1}}, "rrf_weights.ease must be a finite number of at least 0, not -0.1"),
        ({"rrf_weights": {"ease": 10**400}}, "rrf_weights.ease must be a finite number"),
        ({"rrf_weights": {"ease": True}}, "rrf_weights.ease must be a finite number"),
        ({"retrievers": {"ease": 7}}, "retrievers.ease must hold settings by name, not 7"),
        ({"tower": {"dim": 33}}, "two-tower: dim 33 cannot be divided"),
        ({"about": {"data": {}}}, "is no JSON object with about.data.fingerprint .*take it away and search again"),
    ],
)
def test_a_bad_setting_is_named_with_its_file(value: Any, problem: str, tuned: Write) -> None:
    path = tuned(value)
    with pytest.raises(ConfigError, match=f"ml-100k.json:? {problem}"):
        laid_over(path)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b""])
def test_a_file_that_is_no_json_object_is_named(content: bytes, tuned: Write) -> None:
    path = tuned({})
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ml-100k.json is no JSON .*take it away and search again"):
        read_tuned(path)


def test_what_is_checked_in_can_be_used() -> None:
    paths = sorted(pipelines.config.TUNED.glob("*"))
    assert paths
    rules = config_for(planted_tables().events)
    for path in paths:
        assert path.suffix == ".json"
        assert path.stem in DATASETS
        found, over = read_tuned(path), laid_over(path)
        assert len(found.fingerprint) == 64
        assert over.retrievers == {**rules.retrievers, **found.content["retrievers"]}
        assert found.content.get("rrf_weights", {}).items() <= over.recommender.rrf_weights.items()


@pytest.fixture
def begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[float, str]]:
    """Begins a training of the planted world under a name, whose stages do not run: EASE's power, what was printed."""
    monkeypatch.setattr("pipelines.stages.run_stages", lambda *_, **__: {})

    def begin(name: str = "ml-100k", *, synthetic: bool = False, tuned: bool = True) -> tuple[float, str]:
        tables = planted_tables()
        info = replace(tables.info, name=name, synthetic=synthetic)
        save_tables(replace(tables, info=info), Workspace(tmp_path / "home").dataset(name).data)
        opened = open_pipeline(name, Settings(home=tmp_path / "home"), tuned=tuned)
        train(opened)
        return opened.config.retrievers["ease"]["power"], capsys.readouterr().err

    return begin


def test_train_uses_tuned_settings_of_its_data_set_and_says_so(
    tuned: Write, begin: Callable[..., tuple[float, str]]
) -> None:
    path = tuned({"retrievers": {"ease": {"power": 0.5}}})
    power, output = begin()
    assert power == 0.5
    assert output.startswith("settings: tuned for ml-100k (docs/tuning.md); --no-tuned leaves them aside\n")
    for options in ({"tuned": False}, {"synthetic": True}, {"name": "ml-1m"}):
        power, output = begin(**options)
        assert power == 0.95
        assert "settings:" not in output
    tuned({"retrievers": {"ease": {"power": 0.5}}}, fingerprint="1" * 64)
    power, output = begin()
    assert power == 0.95
    assert output.startswith(f"settings: {path} was searched on other data than this ml-100k; the rules hold")
    tuned({"retrievers": {"ease": {"power": -1}}})
    with pytest.raises(ConfigError, match=r"ml-100k.json: retrievers.ease.power"):
        begin()
