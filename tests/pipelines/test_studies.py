"""The studies on a small trained home: against the leaderboard and sums by hand."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.studies import ablation, diversity
from recsys.atomic_io import read_json
from recsys.columns import RETRIEVERS
from recsys.errors import BundleError, DataError, RecsysError
from recsys.evaluation.replay import FULL_SYSTEM
from recsys.features.candidate import FEATURE_GROUPS, feature_names
from recsys.settings import read_settings
from tests.conftest import TrainedHome
from tests.pipelines.conftest import run_command

EXACT = 1e-12


def opened(home: TrainedHome) -> Pipeline:
    return open_pipeline(home.name, read_settings(home.root))


@pytest.fixture(scope="module")
def full(trained_home: TrainedHome) -> dict[str, Any]:
    """What the evaluate stage measured of the full system, by its own replay with lists of 500."""
    leaderboard = read_json(trained_home.dataset.reports / "leaderboard.json")
    return next(m for m in leaderboard["methods"] if m["name"] == FULL_SYSTEM)


def reported(home: TrainedHome, command: str, name: str) -> list[list[str]]:
    """The cells of the table that a study prints, which is also its Markdown file."""
    opened(home).store.apply()  # Feast's registry knows the place of the home
    code, out, err = run_command(command, "--home", home.root, "--dataset", home.name)
    assert code == 0, err
    assert (home.dataset.reports / f"{name}.md").read_text() == out
    assert "Data: synthetic" in out
    bundle = read_json(home.dataset.work / "evaluation.json")["bundle_id"]
    assert out.splitlines()[-1].startswith(f"Measured: command: recsys {command}; bundle: {bundle}; ")
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_diversity_0_is_what_was_evaluated_and_each_degree_is_more_varied(
    changed_home: TrainedHome, full: dict[str, Any]
) -> None:
    rows = reported(changed_home, "diversity", "diversity")
    assert [row[0] for row in rows] == ["0", "0.1", "0.2", "0.3", "0.5", "0.7"]
    metrics, beyond = full["segments"]["all"]["metrics"], full["beyond_accuracy"]
    ndcg = [float(row[1].split()[0]) for row in rows]
    assert rows[0][1] == "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**metrics["ndcg@10"])
    assert rows[0][2:4] == ["", f"{metrics['hr@10']['mean']:.4f}"]
    assert rows[0][4:] == [f"{beyond['diversity']:.3f}", f"{beyond['novelty']:.2f}", f"{beyond['coverage']:.4f}"]
    assert (np.diff([float(row[4]) for row in rows]) > 0.004).all()
    for row, mean in zip(rows[1:], ndcg[1:], strict=True):
        assert float(row[2].split()[0]) == pytest.approx(mean - ndcg[0], abs=1.1e-4)


def test_each_row_of_the_ablation_lacks_its_part(changed_home: TrainedHome, full: dict[str, Any]) -> None:
    table = {name: cells for name, *cells in reported(changed_home, "ablate", "ablation")}
    names, rows = feature_names(RETRIEVERS), read_json(changed_home.dataset.reports / "ablation.json")["rows"]
    assert (changed_home.dataset.reports / "ablation.png").read_bytes().startswith(b"\x89PNG\r\n")
    order = ["everything", *(f"without {n}" for n in RETRIEVERS), *(f"without features: {n}" for n in FEATURE_GROUPS)]
    assert [*table] == order
    for name, (n_features, trees, ndcg, difference, *_) in table.items():
        assert (n_features, trees) == (str(rows[name]["n_features"]), str(rows[name]["trees"]))
        assert ndcg.startswith(f"{rows[name]['metrics']['ndcg@10']['mean']:.4f} [")
        assert (f"{rows[name]['differences']['ndcg@10']['mean']:+.4f}" in difference) == (name != "everything")

    everything = rows["everything"]
    assert everything["n_features"] == len(names)
    for metric, cell in everything["metrics"].items():
        assert cell == pytest.approx(full["segments"]["all"]["metrics"][metric], abs=EXACT)
    for name in RETRIEVERS:
        own = {f"{name}_{what}" for what in ("score", "score_below_best", "rank")}
        assert rows[f"without {name}"]["n_features"] == len([n for n in names if n not in own])
        assert rows[f"without {name}"]["variant"]["retriever"] == name
    for group, pattern in FEATURE_GROUPS.items():
        row = rows[f"without features: {group}"]
        assert row["n_features"] == sum(re.fullmatch(pattern, n) is None for n in names) < len(names)
    for row in rows.values():
        for metric, difference in row["differences"].items():
            minus = row["metrics"][metric]["mean"] - everything["metrics"][metric]["mean"]
            assert difference["mean"] == pytest.approx(minus, abs=EXACT)
    changed = [row for row in rows.values() if row["metrics"] != everything["metrics"]]
    assert len(changed) == len(rows) - 1, "no part is without any effect"


def test_every_feature_is_in_one_group() -> None:
    for name in feature_names(RETRIEVERS):
        assert sum(re.fullmatch(pattern, name) is not None for pattern in FEATURE_GROUPS.values()) == 1, name


def without_genres(bundle: Any) -> Any:
    bundle.recommender.catalogue.__dict__["genres"] = np.zeros((3, 2))
    return bundle


def of_the_past(bundle: Any) -> Any:
    return replace(bundle, facts=replace(bundle.facts, parameters={"ranker": {"of_the_past": 1}}))


@pytest.mark.parametrize(
    ("study", "change", "error", "problem"),
    [
        (diversity, without_genres, DataError, "No item of synthetic has a genre"),
        (ablation, of_the_past, BundleError, "was trained with other settings than this code has"),
    ],
)
def test_a_bundle_that_cannot_be_studied_is_refused(
    study: Any,
    change: Callable[[Any], Any],
    error: type[RecsysError],
    problem: str,
    changed_home: TrainedHome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = study.evaluation_bundle
    monkeypatch.setattr(study, "evaluation_bundle", lambda *arguments: change(original(*arguments)))
    with pytest.raises(error, match=problem):
        study.run(opened(changed_home))
