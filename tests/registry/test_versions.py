"""What is registered comes back whole, aliases move as promised, errors name what there is."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import BundleError, RegistryError
from recsys.evaluation.bootstrap import Estimate
from recsys.registry import Registry

from .conftest import NAME, Make


def champion(registry: Registry) -> int:
    return registry.resolve("champion").version


def test_register_keeps_everything_and_names_the_challenger(
    registry: Registry, make: Make, tmp_path: Path, home: Path
) -> None:
    picture = tmp_path / "leaderboard.png"
    picture.write_bytes(b"png")
    longs = {end: "x" * 9_000 + end for end in "ab"}
    parameters = {"ranker": {"leaves": 31}, "tower": {"dims": [64, 32]}, "seed": 8, "note": longs}
    bundle, sibling = make("b1", parameters=parameters), make("b1-t2", role="evaluation")
    info = registry.register(bundle, evaluation_dir=sibling, report_files=[picture], tags={"machine": "laptop"})
    assert info == registry.resolve("challenger") == registry.resolve(1) == registry.resolve("v1")
    assert (info.version, info.aliases, info.gate, info.gate_reasons) == (1, ("challenger",), "not judged", ())
    assert (info.bundle_id, info.dataset, info.fingerprint, info.code_version) == ("b1", "demo", "a" * 64, "0.1.0+abc")
    assert info.dataset_label == "demo (synthetic, not MovieLens)"
    assert info.ndcg == Estimate(0.2, 0.18, 0.22)

    run = registry._backend.client.get_run(info.run_id)
    assert run.info.status == "FINISHED"
    notes = {run.data.params.pop(f"note.{end}") for end in longs}
    assert len(notes) == 2, "long values that differ at the end stay different"
    assert all(len(note) <= 500 and "... sha256 " in note for note in notes)
    assert run.data.params == {"ranker.leaves": "31", "seed": "8", "tower.dims": "[64, 32]"}
    retrieval = {"retrieval_ndcg_at_10": 0.1, "retrieval_ndcg_at_10.low": 0.09, "retrieval_ndcg_at_10.high": 0.11}
    ndcg = {"ndcg_at_10": 0.2, "ndcg_at_10.low": 0.18, "ndcg_at_10.high": 0.22}
    gain = {"ranker_gain_ndcg_at_10": 0.1, "ranker_gain_ndcg_at_10.low": 0.08, "ranker_gain_ndcg_at_10.high": 0.12}
    assert run.data.metrics == {**ndcg, **retrieval, **gain, "latency_p99_ms": 10.0}
    assert (run.data.tags["recsys.fingerprint"], run.data.tags["machine"]) == ("a" * 64, "laptop")
    artifacts = home / "artifacts" / NAME / info.run_id / "artifacts"
    assert run.info.artifact_uri == artifacts.as_uri()
    assert sorted(p.name for p in artifacts.iterdir()) == ["bundle", "evaluation_bundle", "reports"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": "evaluation"}, "is a bundle for evaluation; one for production is wanted here"),
        ({"dataset": {"name": "demo"}}, "cannot be read"),
        ({"bundle_id": "../x"}, r"bundle_id '\.\./x' cannot name a folder"),
        ({"sibling_id": "other-t2"}, "their metrics would be mixed up"),
        ({"format": 1}, "has format 1"),
    ],
)
def test_what_is_not_the_bundle_that_it_should_be_is_refused(
    registry: Registry, make: Make, changes: dict[str, Any], reason: str
) -> None:
    bundle, sibling = make("b1"), make("b1-t2", role="evaluation")
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(manifest | changes))
    with pytest.raises(BundleError, match=reason):
        registry.register(bundle, evaluation_dir=sibling)
    assert registry.versions() == []


def test_a_failure_while_registering_leaves_a_failed_run_and_no_version(registry: Registry, make: Make) -> None:
    """A disk that is full: a report that cannot be read stands for it."""
    with pytest.raises(RegistryError, match=r"Could not register a bundle in the registry at .*can be written"):
        registry.register(make("b1"), report_files=[Path("/nowhere/report.json")])
    client = registry._backend.client
    (experiment,) = (e for e in client.search_experiments() if e.name.startswith(NAME))
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]
    assert registry.versions() == []


def _register_in_process(home: str, bundle: str) -> None:
    Registry(None, Path(home), NAME).register(Path(bundle))


def test_two_processes_register_at_once_in_a_home_without_a_database(tmp_path: Path, make: Make) -> None:
    context = multiprocessing.get_context("spawn")
    home = tmp_path / "fresh"
    workers = [
        context.Process(target=_register_in_process, args=(str(home), str(make(bundle_id))))
        for bundle_id in ("b1", "b2")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    versions = Registry(None, home, NAME).versions()
    assert [(v.version, v.aliases) for v in versions] == [(2, ("challenger",)), (1, ())]
    assert {v.bundle_id for v in versions} == {"b1", "b2"}


def test_promote_takes_the_challenger_alias_and_repeats_without_effect(registry: Registry, make: Make) -> None:
    registry.register(make("b1"))
    assert registry.promote("challenger").aliases == ("champion",)
    assert registry.promote(1).aliases == ("champion",)
    with pytest.raises(RegistryError, match="has no earlier champion to roll back to"):
        registry.rollback()
    registry.register(make("b2"))
    registry.promote("champion")
    assert [v.aliases for v in registry.versions()] == [("challenger",), ("champion",)]


def test_rollback_goes_one_champion_back_each_time_and_then_refuses(registry: Registry, make: Make) -> None:
    for number in (1, 2, 3):
        registry.register(make(f"b{number}"))
        registry.promote(number)
    assert registry.rollback().version == 2
    assert registry.rollback().version == 1
    with pytest.raises(RegistryError, match=r"Version 1 of recsys-demo has no earlier champion to roll back to\."):
        registry.rollback()
    assert champion(registry) == 1
    registry.promote(3)
    assert registry.rollback().version == 1


def test_rollback_skips_deleted_versions_and_what_a_crash_left(registry: Registry, make: Make) -> None:
    for number in (1, 2, 3):
        registry.register(make(f"b{number}"))
        registry.promote(number)
    client = registry._backend.client
    client.delete_model_version(NAME, "2")
    client.set_registered_model_tag(NAME, "recsys.champion_history", "[1, 2, 3]")  # history written, alias not moved
    assert registry.rollback().version == 1


def test_rollback_without_a_champion(registry: Registry, make: Make) -> None:
    with pytest.raises(RegistryError, match=r"recsys-demo has no champion to roll back from\. Promote"):
        registry.rollback()
    registry.register(make("b1"))
    with pytest.raises(RegistryError, match="has no champion to roll back from"):
        registry.rollback()


def test_judge_records_the_gate_and_promotes_nothing(registry: Registry, make: Make) -> None:
    registry.register(make("b1", ndcg=0.2))
    assert registry.judge(latency_budget_ms=50).passed
    assert registry.resolve(1).gate == "passed"
    assert registry.resolve(1).aliases == ("challenger",)
    registry.promote(1)
    registry.register(make("b2", ndcg=0.12))
    result = registry.judge(latency_budget_ms=50)
    assert registry.resolve(2).gate == "refused"
    assert registry.resolve(2).gate_reasons == tuple(result.reasons)
    assert result.reasons == [
        "NDCG@10 of version 2 is 0.1200, below 0.1800, the low end of the interval of the champion (version 1)."
    ]
    assert champion(registry) == 1
    assert registry.judge("champion", latency_budget_ms=50).checks[0].name == "sane_metrics"
    assert registry.resolve(1).gate == "passed"


def test_an_empty_registry_says_so_and_creates_nothing(tmp_path: Path) -> None:
    registry = Registry(None, tmp_path / "none", NAME)
    assert registry.versions() == []
    with pytest.raises(RegistryError, match=r"holds no version of recsys-demo yet\. Run `recsys train` first\."):
        registry.resolve("champion")
    assert not (tmp_path / "none").exists()


def test_unknown_versions_and_aliases_name_what_there_is(registry: Registry, make: Make) -> None:
    for bundle_id in ("b1", "b2"):
        registry.register(make(bundle_id))
    for ref, named in ((9, "no version 9"), ("v9", "no version 9"), ("champion", "no version called 'champion'")):
        with pytest.raises(RegistryError, match=rf"recsys-demo has {named}\. It has 1, 2 \(challenger\)\. Name one"):
            registry.promote(ref)


def test_versions_are_newest_first_without_what_others_registered(registry: Registry, make: Make) -> None:
    for bundle_id in ("b1", "b2"):
        registry.register(make(bundle_id))
    registry._backend.client.create_model_version(NAME, "file:///elsewhere", await_creation_for=0)
    assert [(v.version, v.aliases) for v in registry.versions()] == [(2, ("challenger",)), (1, ())]


def test_compare_gives_no_verdict_without_ranks(registry: Registry, make: Make) -> None:
    registry.register(make("b1", ndcg=0.20))
    registry.register(make("b2", ndcg=0.25, parameters={"ranker": {"leaves": 63}, "seed": 7, "new": True}))
    comparison = registry.compare(1, 2)
    assert (comparison.a.version, comparison.b.version, comparison.worse) == (1, 2, None)
    assert comparison.parameters == {"new": (None, "true"), "ranker.leaves": ("31", "63")}
    assert list(comparison.metrics) == ["latency_p99_ms", "ndcg@10", "ranker_gain_ndcg@10", "retrieval_ndcg@10"]
    assert comparison.metrics["ndcg@10"] == (Estimate(0.20, 0.18, 0.22), Estimate(0.25, 0.23, 0.27))
    assert comparison.verdict.startswith("No verdict, because the two cannot be compared event by event: ")
