"""Tuned settings as defaults: what they change, what they must not name, and when a training uses them.

Stage: tests. Absent: the rules that follow the data's size, and the search.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines.config
from pipelines.config import config_for, tuned_path
from pipelines.training import open_job
from pipelines.training import train as train_job
from recsys.artefacts import read_json, write_json
from recsys.errors import ConfigError
from recsys.ranking.training import RankerSettings
from recsys.retrieval.two_tower_training import TowerSettings
from recsys.settings import read_settings
from tests.conftest import TrainedHome
from tests.planted import planted_tables


@pytest.fixture(scope="module")
def home(trained_home: TrainedHome, tmp_path_factory: pytest.TempPathFactory) -> TrainedHome:
    """A copy whose record of the source may be rewritten."""
    root = tmp_path_factory.mktemp("config") / "home"
    shutil.copytree(trained_home.root, root)
    return TrainedHome(root, trained_home.raw)


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Path]:
    """Writes the tuned settings of ml-100k, in a folder of the test's own."""
    monkeypatch.setattr(pipelines.config, "TUNED", tmp_path)

    def write(value: Any) -> Path:
        write_json(tuned_path("ml-100k"), value)
        return tuned_path("ml-100k")

    return write


def test_tuned_settings_lie_over_the_rules(tuned: Callable[[Any], Path]) -> None:
    tuned(
        {
            "sources": {"ease": {"power": 0.5}, "ials": {"dim": 64}},
            "fusion": {"ease": 0.7},
            "ranker": {"leaves": 9},
            "tower": {"dropout": 0.3},
            "about": {"data": "anything"},
        }
    )
    events = planted_tables().events
    rules, over = config_for(events, seed=3), config_for(events, seed=3, dataset="ml-100k")
    assert config_for(events, seed=3, dataset="ml-1m") == rules
    assert over.tuned == "ml-100k"
    assert rules.tuned is None
    assert over.sources["ease"] == {**rules.sources["ease"], "power": 0.5}
    assert over.sources["ials"] == {**rules.sources["ials"], "dim": 64}
    assert over.sources["popularity"] == rules.sources["popularity"]
    assert over.recommender.fusion == {**rules.recommender.fusion, "ease": 0.7}
    assert over.ranker == replace(RankerSettings(), seed=3, leaves=9)
    assert isinstance(over.tower, TowerSettings)
    assert over.tower == replace(rules.tower, dropout=0.3)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"source": {}}, r"ml-100k.json: there is no setting source; known are sources, fusion"),
        ({"sources": {"als": {}}}, r"ml-100k.json: there is no setting sources.als; known are ease"),
        ({"sources": {"ease": {"lambda": 1}}}, r"no setting sources.ease.lambda; known are regularisation, power"),
        ({"fusion": {"als": 1}}, r"no setting fusion.als; known are two_tower"),
        ({"ranker": {"leafs": 7}}, r"no setting ranker.leafs; known are .*leaves"),
        ({"tower": {"seed": 7}}, r"no setting tower.seed; known are dim"),
        ({"ranker": {"leaves": "7"}}, r"ml-100k.json: ranker.leaves must be a number, not '7'"),
        ({"fusion": {"ease": True}}, r"fusion.ease must be a number, not True"),
        ({"sources": {"ease": 7}}, r"sources.ease must be an object with settings, not 7"),
        ([], r"ml-100k.json: the file must be an object with settings, not \[\]"),
    ],
)
def test_tuned_settings_that_nobody_knows_are_named(value: Any, said: str, tuned: Callable[[Any], Path]) -> None:
    tuned(value)
    with pytest.raises(ConfigError, match=said):
        config_for(planted_tables().events, dataset="ml-100k")


def test_train_says_that_it_uses_tuned_settings(
    home: TrainedHome, tuned: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home's data under an official name; stages do not run here."""
    tuned({"sources": {"ease": {"power": 0.5}}})
    monkeypatch.setattr("pipelines.training.run_stages", lambda *_, **__: None)

    def said(named: str, synthetic: bool, **options: Any) -> tuple[float, str]:
        record = home.dataset.data / "source.json"
        kept = read_json(record)
        write_json(record, {**kept, "name": named, "synthetic": synthetic})
        try:
            job = open_job(home.name, read_settings(home.root), **options)
        finally:
            write_json(record, kept)
        lines: list[str] = []
        train_job(replace(job, report=lines.append))
        return job.config.sources["ease"]["power"], "\n".join(lines)

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
