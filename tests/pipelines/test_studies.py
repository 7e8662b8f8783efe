"""The studies on a small trained home: against the leaderboard, against sums by hand, and stopped half-way."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.studies import ablation, diversity
from pipelines.studies.cli import app
from recsys.atomic_io import read_json
from recsys.bundle import BundleFacts
from recsys.columns import RETRIEVERS
from recsys.errors import BundleError, DataError
from recsys.evaluation.beyond_accuracy import BeyondAccuracy
from recsys.evaluation.bootstrap import Estimate
from recsys.evaluation.replay import FULL_SYSTEM
from recsys.features.candidate import FEATURE_GROUPS, feature_names
from recsys.settings import read_settings
from tests.conftest import TrainedHome, use_small_settings
from tests.evaluation.leaderboards import study_run

PNG = b"\x89PNG\r\n"
EXACT = 1e-12


@pytest.fixture(scope="module")
def home(trained_home: TrainedHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedHome]:
    """A copy that the studies may write to."""
    root = tmp_path_factory.mktemp("studies") / "home"
    shutil.copytree(trained_home.root, root)
    with pytest.MonkeyPatch.context() as patch:
        use_small_settings(patch)
        patch.setattr(ablation, "code_fingerprint", lambda _: "this code")
        copy = TrainedHome(root, trained_home.raw)
        opened(copy).store.apply()  # Feast's registry knows the place of the home
        yield copy


def opened(home: TrainedHome) -> Pipeline:
    return open_pipeline(home.name, read_settings(home.root))


@pytest.fixture(scope="module")
def full(home: TrainedHome) -> dict[str, Any]:
    """What the evaluate stage measured of the full system, by its own replay with lists of 500."""
    leaderboard = read_json(home.dataset.reports / "leaderboard.json")
    return next(m for m in leaderboard["methods"] if m["name"] == FULL_SYSTEM)


def run_command(home: TrainedHome, *arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--home", str(home.root), "--dataset", home.name])
    assert done.exception is None, done.output
    return str(done.stdout)


# ---- diversity


@pytest.fixture(scope="module")
def curve(home: TrainedHome) -> tuple[str, dict[str, Any]]:
    said = run_command(home, "diversity")
    return said, read_json(home.dataset.reports / "diversity.json")


def test_diversity_0_is_what_the_evaluate_stage_measured(
    curve: tuple[str, dict[str, Any]], full: dict[str, Any]
) -> None:
    first = curve[1]["rows"][0]
    assert first["diversity"] == 0.0
    for name, metric in (("ndcg", "ndcg@10"), ("hr", "hr@10")):
        assert first[name] == pytest.approx(full["segments"]["all"]["metrics"][metric], abs=EXACT)
    assert first["beyond_accuracy"] == pytest.approx(full["beyond_accuracy"], abs=EXACT)
    assert first["difference"]["mean"] == first["difference"]["low"] == first["difference"]["high"] == 0.0


def test_each_degree_is_more_varied_and_its_difference_is_that_of_the_means(
    curve: tuple[str, dict[str, Any]], home: TrainedHome
) -> None:
    result = curve[1]
    assert [row["diversity"] for row in result["rows"]] == [0.0, 0.1, 0.2, 0.3, 0.5, 0.7]
    variety = [row["beyond_accuracy"]["diversity"] for row in result["rows"]]
    assert (np.diff(variety) > 0.005).all()
    for row in result["rows"]:
        minus = row["ndcg"]["mean"] - result["rows"][0]["ndcg"]["mean"]
        assert row["difference"]["mean"] == pytest.approx(minus, abs=EXACT)
    after = home.events[home.events["timestamp"] > opened(home).data.split.t2]
    assert (result["n_events"], result["n_users"]) == (len(after), after["user_id"].nunique())
    assert (
        result["n_contexts"] == result["n_contexts_in_window"] == len(after[["user_id", "timestamp"]].drop_duplicates())
    )


def test_the_table_and_the_picture_are_written(curve: tuple[str, dict[str, Any]], home: TrainedHome) -> None:
    said, result = curve
    assert (home.dataset.reports / "diversity.png").read_bytes().startswith(PNG)
    assert (home.dataset.reports / "diversity.md").read_text() == said
    assert "synthetic" in said.split("The test window")[0]
    assert "sample" not in said
    lines = [line for line in said.splitlines() if re.match(r"\| \d", line)]
    for line, row in zip(lines, result["rows"], strict=True):
        assert re.match(rf"\| {row['diversity']:g} +\| {row['ndcg']['mean']:.4f} \[", line)


def test_a_sample_says_that_it_is_one(curve: tuple[str, dict[str, Any]], home: TrainedHome) -> None:
    said = diversity.run(opened(home), 15)
    assert f"at 15 moments, a random sample of the {curve[1]['n_contexts']:,} in the test window." in said
    bundle = read_json(home.dataset.work / "evaluation.json")["bundle_id"]
    assert said.splitlines()[-1].startswith(f"Measured: command: recsys diversity --contexts 15; bundle: {bundle}; ")


@pytest.mark.parametrize(
    ("high", "says"),
    [
        ({0.1: 0.1, 0.2: 0.0, 0.3: -0.01}, "Diversity 0.2 changes intra-list diversity"),
        ({0.1: -0.02, 0.2: -0.01}, "Every degree of diversity costs NDCG@10."),
    ],
)
def test_the_finding_is_the_largest_degree_that_cannot_be_told_apart(high: dict[float, float], says: str) -> None:
    beyond = BeyondAccuracy(0.5, 3.0, 0.4, 50.0, 0.5)
    intervals = {0.0: Estimate(0.0, 0.0, 0.0), **{d: Estimate(-0.1, -0.2, end) for d, end in high.items()}}
    rows = [diversity.DiversityRow(d, e, e, e, beyond) for d, e in intervals.items()]
    assert diversity.finding(diversity.DiversityStudy(study_run(), 9, 9, 9, 9, tuple(rows))).startswith(says)


def test_items_without_genres_are_refused(home: TrainedHome, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = diversity.evaluation_bundle(opened(home).home, opened(home).data)
    monkeypatch.setitem(bundle.recommender.catalogue.__dict__, "genres", np.zeros((3, 2)))
    monkeypatch.setattr(diversity, "evaluation_bundle", lambda *_: bundle)
    with pytest.raises(DataError, match="No item of synthetic has a genre"):
        diversity.run(opened(home))


# ---- ablation


@pytest.fixture(scope="module")
def stopped(home: TrainedHome) -> dict[str, Any]:
    """What is kept of a run that Ctrl-C stopped while the third row was fitted."""
    original, fitted = ablation.fit_boosted, []

    def fit(*arguments: Any, **options: Any) -> Any:
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(1)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "fit_boosted", fit)
        with pytest.raises(KeyboardInterrupt):
            ablation.run(opened(home))
    return read_json(home.dataset.reports / "ablation.json")


@pytest.fixture(scope="module")
def table(stopped: dict[str, Any], home: TrainedHome) -> tuple[str, dict[str, Any]]:
    """Of the run that went on from there."""
    assert list(stopped["rows"]) == sorted(stopped["rows"])
    said = run_command(home, "ablate")
    return said, read_json(home.dataset.reports / "ablation.json")


def test_a_stopped_run_keeps_its_rows_and_goes_on(stopped: dict[str, Any], table: tuple[str, dict[str, Any]]) -> None:
    first_group = f"without features: {next(iter(FEATURE_GROUPS))}"
    assert set(stopped["rows"]) == {"everything", first_group}
    for name, row in stopped["rows"].items():
        assert table[1]["rows"][name] == row, "measured once"


def test_everything_is_what_the_evaluate_stage_measured(
    table: tuple[str, dict[str, Any]], full: dict[str, Any]
) -> None:
    row = table[1]["rows"]["everything"]
    for name, cell in row["metrics"].items():
        assert cell == pytest.approx(full["segments"]["all"]["metrics"][name], abs=EXACT)
    assert row["n_features"] == len(feature_names(RETRIEVERS))
    assert all(d["mean"] == d["low"] == d["high"] == 0.0 for d in row["differences"].values())


def test_each_row_lacks_its_part(table: tuple[str, dict[str, Any]]) -> None:
    names = feature_names(RETRIEVERS)
    rows = table[1]["rows"]
    assert [*in_order(table[0])] == [
        "everything",
        *(f"without {name}" for name in RETRIEVERS),
        *(f"without features: {name}" for name in FEATURE_GROUPS),
    ]
    for name in RETRIEVERS:
        row = rows[f"without {name}"]
        assert row["n_features"] == len(names) - sum(n.startswith(f"{name}_") and n in _scores(name) for n in names)
        assert (row["variant"]["retriever"], row["variant"]["group"]) == (name, None)
    for group, pattern in FEATURE_GROUPS.items():
        row = rows[f"without features: {group}"]
        assert row["n_features"] == sum(re.fullmatch(pattern, n) is None for n in names) < len(names)
        assert (row["variant"]["retriever"], row["variant"]["group"]) == (None, group)
    for row in rows.values():
        for name, difference in row["differences"].items():
            minus = row["metrics"][name]["mean"] - rows["everything"]["metrics"][name]["mean"]
            assert difference["mean"] == pytest.approx(minus, abs=EXACT)
            assert difference["low"] <= difference["mean"] <= difference["high"]
    changed = [row for row in rows.values() if row["metrics"] != rows["everything"]["metrics"]]
    assert len(changed) == len(rows) - 1, "no part is without any effect"


def in_order(said: str) -> list[str]:
    """The first cells of the table."""
    return [
        line.split(" | ")[0][2:].strip() for line in said.splitlines() if line.startswith(("| everything", "| without"))
    ]


def _scores(retriever: str) -> set[str]:
    return {f"{retriever}_{what}" for what in ("score", "score_below_best", "rank")}


def test_a_second_run_measures_nothing_unless_forced_or_what_it_rests_on_changed(
    table: tuple[str, dict[str, Any]], home: TrainedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("fitted")

    monkeypatch.setattr(ablation, "fit_boosted", refuse)
    assert ablation.run(opened(home)) == table[0], "also the date of the figures"
    with pytest.raises(RuntimeError, match="fitted"):
        ablation.run(opened(home), force=True)
    for stage in ("retrievers_t0", "retrievers_t1"):
        changed = next(p for p in sorted((home.dataset.work / stage).rglob("*.json")))
        before = changed.read_bytes()
        changed.write_bytes(before + b" ")
        (ranks,) = home.dataset.work.glob("ablation.*")
        kept = ranks.read_bytes()
        with pytest.raises(RuntimeError, match="fitted"):
            ablation.run(opened(home))
        assert not ranks.exists(), "ranks that no row may be compared with"
        changed.write_bytes(before)
        ranks.write_bytes(kept)
    assert ablation.run(opened(home)) == table[0]


def test_the_table_and_the_picture_of_the_ablation(table: tuple[str, dict[str, Any]], home: TrainedHome) -> None:
    said, result = table
    assert (home.dataset.reports / "ablation.png").read_bytes().startswith(PNG)
    assert (home.dataset.reports / "ablation.md").read_text() == said
    lines = [line for line in said.splitlines() if line.startswith(("| everything", "| without"))]
    for line, name in zip(lines, in_order(said), strict=True):
        row = result["rows"][name]
        assert f" | {row['metrics']['ndcg@10']['mean']:.4f} [" in line
        assert (f"{row['differences']['ndcg@10']['mean']:+.4f}" in line) == (name != "everything")


def test_every_feature_is_in_one_group() -> None:
    for name in feature_names(RETRIEVERS):
        assert sum(re.fullmatch(pattern, name) is not None for pattern in FEATURE_GROUPS.values()) == 1, name
    groups = {name: [n for n in feature_names(["ease"]) if re.fullmatch(p, n)] for name, p in FEATURE_GROUPS.items()}
    assert all(groups.values()), "no group is empty"
    assert {"ease_rank", "merged_score"} <= set(groups["retriever scores"])
    assert {"similarity_last", "covisitation_last"} <= set(groups["similarity"])
    assert {"genre_affinity", "decade", "user_decade"} <= set(groups["genres and decades"])
    assert {"popularity_7d", "days_since_last_rated"} <= set(groups["item statistics"])
    assert {"user_events", "user_popularity"} <= set(groups["user habits"])


@pytest.mark.parametrize("parameters", [{}, {"ranker": {"of_the_past": 1}}])
def test_settings_that_this_code_does_not_know_are_refused(
    parameters: dict[str, Any], home: TrainedHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ablation.evaluation_bundle

    def of_the_past(*arguments: Any) -> Any:
        bundle = original(*arguments)
        facts: BundleFacts = replace(bundle.facts, parameters=parameters)
        return replace(bundle, facts=facts)

    monkeypatch.setattr(ablation, "evaluation_bundle", of_the_past)
    with pytest.raises(BundleError, match="was trained with other settings than this code has"):
        ablation.run(opened(home))
