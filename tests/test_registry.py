"""The registry over SQLite: what is stored comes back whole, aliases move as promised, errors say what to do.

Longer than other files: all tests share one empty database, which MLflow takes seconds to make.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from recsys.atomic_io import replacing_folder
from recsys.bundle import FORMAT
from recsys.errors import BundleError, RegistryError
from recsys.registry import Registry, model_name_for
from recsys.registry.backend import Backend, load_mlflow
from recsys.registry.records import fingerprint_folder, flat_parameters, version_info

NAME = model_name_for("demo")
Make = Callable[..., Path]


def write_bundle(folder: Path, bundle_id: str, *, role: str = "production", ndcg: float = 0.2, **changes: Any) -> Path:
    """A bundle as far as the registry looks into one, with files in a sub-folder that it must not look into."""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "bundle_id": bundle_id,
        "dataset": {
            "name": "demo",
            "synthetic": True,
            "layout": "ml-1m",
            "fingerprint": "a" * 64,
            "n_events": 9,
            "n_items": 1,
            "n_users": 1,
        },
        "trained_through": 1_000_000_000,
        "through_seq": 0,
        "role": role,
        "sibling_id": f"{bundle_id}-t2" if role == "production" else None,
        "code_version": "0.1.0+abc",
        "metrics": {
            "ndcg@10": {"mean": ndcg, "low": ndcg - 0.02, "high": ndcg + 0.02},
            "retrieval_ndcg@10": {"mean": 0.1, "low": 0.09, "high": 0.11},
            "latency_p99_ms": 10.0,
            "cold": {"hr@10": None},
        },
        "parameters": {"ranker": {"leaves": 31}, "seed": 7},
        "created_utc": "2026-11-21T00:00:00Z",
        "files": {},
    }
    place = folder / bundle_id
    (place / "index").mkdir(parents=True)
    (place / "bundle.json").write_text(json.dumps(manifest | changes))
    (place / "index" / "vectors.bin").write_bytes(bundle_id.encode() * 100)
    return place


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda bundle_id, **changes: write_bundle(tmp_path / "built", bundle_id, **changes)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables only: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("template")
    backend = Backend(None, folder)
    with backend.speaking("open"):
        assert backend.client is not None
    return folder / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "a home" / "mlflow"  # with a space: it becomes part of a URI
    folder.mkdir(parents=True)
    shutil.copyfile(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry(None, home, NAME)


def champion(registry: Registry) -> int:
    return registry.resolve("champion").version


# -- register -------------------------------------------------------------------------------------------------------


def test_register_keeps_everything_and_names_the_challenger(
    registry: Registry, make: Make, tmp_path: Path, home: Path
) -> None:
    picture = tmp_path / "leaderboard.png"
    picture.write_bytes(b"png")
    parameters = {"ranker": {"leaves": 31}, "tower": {"dims": [64, 32], "note": "x" * 600}, "seed": 8}
    bundle, sibling = make("b1", parameters=parameters), make("b1-t2", role="evaluation")
    info = registry.register(
        bundle,
        evaluation_dir=sibling,
        report_files=[picture],
        tags={"machine": "laptop"},
    )
    assert info == registry.resolve("challenger") == registry.resolve(1) == registry.resolve("v1")
    assert (info.version, info.aliases, info.gate, info.gate_reasons) == (1, ("challenger",), "not judged", ())
    assert (info.bundle_id, info.dataset, info.fingerprint, info.code_version) == ("b1", "demo", "a" * 64, "0.1.0+abc")
    assert (info.synthetic, info.trained_through) == (True, 1_000_000_000)
    assert info.dataset_label == "demo (synthetic, not MovieLens)"
    assert info.ndcg is not None
    assert (info.ndcg.mean, info.ndcg.low, info.ndcg.high) == (0.2, pytest.approx(0.18), pytest.approx(0.22))
    assert info.metrics == json.loads((bundle / "bundle.json").read_text())["metrics"]

    run = registry._backend.client.get_run(info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["ranker.leaves"] == "31"
    assert run.data.params["seed"] == "8"
    assert run.data.params["tower.dims"] == "[64, 32]"
    assert run.data.params["tower.note"].startswith("xxx")
    assert "... sha256 " in run.data.params["tower.note"]
    assert run.data.metrics == {
        "ndcg_at_10": 0.2,
        "ndcg_at_10.low": pytest.approx(0.18),
        "ndcg_at_10.high": pytest.approx(0.22),
        "retrieval_ndcg_at_10": 0.1,
        "retrieval_ndcg_at_10.low": 0.09,
        "retrieval_ndcg_at_10.high": 0.11,
        "latency_p99_ms": 10.0,
    }
    assert run.data.tags["recsys.fingerprint"] == "a" * 64
    assert run.data.tags["recsys.code_version"] == "0.1.0+abc"
    assert run.data.tags["machine"] == "laptop"
    artifacts = home / "artifacts" / NAME / info.run_id / "artifacts"
    assert run.info.artifact_uri == artifacts.as_uri()
    assert sorted(p.name for p in artifacts.iterdir()) == ["bundle", "evaluation_bundle", "reports"]
    assert (artifacts / "reports" / "leaderboard.png").read_bytes() == b"png"
    entity = registry._backend.client.get_model_version(NAME, "1")
    assert entity.source == f"{artifacts.as_uri()}/bundle"
    assert entity.tags["machine"] == "laptop"


def test_challenger_moves_to_the_newest_and_versions_are_newest_first(registry: Registry, make: Make) -> None:
    registry.register(make("b1"))
    registry.register(make("b2"))
    assert [(v.version, v.bundle_id, v.aliases) for v in registry.versions()] == [
        (2, "b2", ("challenger",)),
        (1, "b1", ()),
    ]


def test_two_long_values_that_differ_at_the_end_stay_different() -> None:
    first, second = (flat_parameters({"p": "x" * 9_000 + end})["p"] for end in "ab")
    assert first != second
    assert len(first) <= 500


def test_register_refuses_what_is_not_a_bundle(registry: Registry, make: Make, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no bundle"):
        registry.register(tmp_path)
    with pytest.raises(BundleError, match="is a bundle for evaluation; one for production is wanted here"):
        registry.register(make("b1-t2", role="evaluation"))
    with pytest.raises(BundleError, match="cannot be read"):
        registry.register(make("b2", dataset={"name": "demo", "synthetic": False}))
    (make("b3") / "bundle.json").write_text("[]")
    with pytest.raises(BundleError, match="cannot be read"):
        registry.register(tmp_path / "built" / "b3")
    with pytest.raises(BundleError, match=r"bundle_id '\.\./x' cannot name a folder"):
        registry.register(rename(make("b4"), "../x"))
    with pytest.raises(BundleError, match="their metrics would be mixed up"):
        registry.register(make("b5"), evaluation_dir=tmp_path / "built" / "b1-t2")
    assert registry.versions() == []


def rename(bundle: Path, bundle_id: str) -> Path:
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(manifest | {"bundle_id": bundle_id}))
    return bundle


def test_a_failure_while_registering_leaves_a_failed_run_and_no_version(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make("b1")
    client = registry._backend.client

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client, "log_artifacts", full)
    with pytest.raises(RegistryError, match=r"Could not register a bundle in the registry at .*No space left.*written"):
        registry.register(bundle)
    experiment = client.get_experiment_by_name(NAME)
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
    assert [worker.exitcode for worker in workers] == [0, 0]
    versions = Registry(None, home, NAME).versions()
    assert [v.version for v in versions] == [2, 1]
    assert {v.bundle_id for v in versions} == {"b1", "b2"}
    assert versions[0].aliases == ("challenger",)


# -- promote, roll back, gate ---------------------------------------------------------------------------------------


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
    assert not result.passed
    assert registry.resolve(2).gate == "refused"
    assert registry.resolve(2).gate_reasons == tuple(result.reasons)
    assert result.reasons == [
        "NDCG@10 of version 2 is 0.1200, below 0.1800, the low end of the interval of the champion (version 1)."
    ]
    assert champion(registry) == 1
    assert registry.judge("champion", latency_budget_ms=50).checks[0].name == "sane_metrics"
    assert registry.resolve(1).gate == "passed"


# -- look up --------------------------------------------------------------------------------------------------------


def test_an_empty_registry_says_so_and_creates_nothing(tmp_path: Path) -> None:
    registry = Registry(None, tmp_path / "none", NAME)
    assert registry.versions() == []
    with pytest.raises(RegistryError, match=r"holds no version of recsys-demo yet\. Run `recsys train` first\."):
        registry.resolve("champion")
    assert not (tmp_path / "none").exists()


def test_unknown_versions_and_aliases_name_what_there_is(registry: Registry, make: Make) -> None:
    registry.register(make("b1"))
    registry.register(make("b2"))
    for ref in (9, "9", "v9"):
        with pytest.raises(RegistryError, match=r"recsys-demo has no version 9\. It has 1, 2\."):
            registry.promote(ref)
    with pytest.raises(RegistryError, match=r"no version called 'champion'\. Its aliases: challenger \(2\)\. Promote"):
        registry.resolve("champion")
    registry._backend.client.delete_registered_model_alias(NAME, "challenger")
    with pytest.raises(RegistryError, match=r"Its aliases: none\."):
        registry.compare(1, "challenger")


def test_versions_reads_every_page_and_skips_what_others_registered(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        registry.register(make(f"b{number}"))
    client = registry._backend.client
    client.create_model_version(NAME, "file:///elsewhere", await_creation_for=0)
    search = client.search_model_versions
    monkeypatch.setattr(client, "search_model_versions", lambda *a, **k: search(*a, **k, max_results=1))
    assert [v.version for v in registry.versions()] == [3, 2, 1]
    assert version_info(client.get_model_version(NAME, "4"), {}) is None


def test_two_homes_and_two_data_sets_never_mix(
    registry: Registry, make: Make, tmp_path: Path, empty_database: Path
) -> None:
    other_home = tmp_path / "other"
    other_home.mkdir()
    shutil.copyfile(empty_database, other_home / "mlflow.db")
    other = Registry(None, other_home, NAME)
    registry.register(make("b1"))
    registry.promote(1)
    other.register(make("b2"))
    assert [v.bundle_id for v in registry.versions()] == ["b1"]
    assert [(v.bundle_id, v.aliases) for v in other.versions()] == [("b2", ("challenger",))]
    assert fingerprint_folder(other.download(1, tmp_path / "to")) == other.resolve(1).bundle_sha256
    assert Registry(None, other_home, model_name_for("ml-1m")).versions() == []


# -- download -------------------------------------------------------------------------------------------------------


def test_download_equals_what_was_registered_and_is_reused(registry: Registry, make: Make, tmp_path: Path) -> None:
    bundle, sibling = make("b1"), make("b1-t2", role="evaluation")
    registry.register(bundle, evaluation_dir=sibling)
    place = registry.download("challenger", tmp_path / "to")
    assert place == tmp_path / "to" / "b1"
    assert fingerprint_folder(place) == fingerprint_folder(bundle) == registry.resolve(1).bundle_sha256
    before = place.stat().st_ino
    assert registry.download(1, tmp_path / "to") == place
    assert place.stat().st_ino == before
    (place / "index" / "vectors.bin").write_bytes(b"altered")
    assert fingerprint_folder(registry.download(1, tmp_path / "to")) == fingerprint_folder(bundle)
    fetched = registry.download(1, tmp_path / "to", evaluation=True)
    assert fetched == tmp_path / "to" / "b1-t2"
    assert fingerprint_folder(fetched) == fingerprint_folder(sibling)
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["b1", "b1-t2"]


def test_download_through_mlflow_where_the_artifacts_lie_elsewhere(
    registry: Registry, make: Make, home: Path, tmp_path: Path
) -> None:
    bundle = make("b1")
    registry.register(bundle)
    reader = Registry(f"sqlite:///{home}/mlflow.db", tmp_path / "reader", NAME)
    assert fingerprint_folder(reader.download(1, tmp_path / "to")) == fingerprint_folder(bundle)


def test_download_errors(registry: Registry, make: Make, home: Path, tmp_path: Path) -> None:
    info = registry.register(make("b1"))
    with pytest.raises(RegistryError, match="Version 1 of recsys-demo was registered without its sibling"):
        registry.download(1, tmp_path, evaluation=True)
    stored = home / "artifacts" / NAME / info.run_id / "artifacts" / "bundle"
    (stored / "index" / "vectors.bin").write_bytes(b"altered")
    with pytest.raises(RegistryError, match="was altered or is incomplete"):
        registry.download(1, tmp_path / "to")
    shutil.rmtree(stored)
    with pytest.raises(RegistryError, match="Could not fetch version 1 in the registry at"):
        registry.download(1, tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []
    registry._backend.client.set_model_version_tag(NAME, "1", "recsys.bundle_id", "../../evil")
    with pytest.raises(RegistryError, match=r"names its bundle '\.\./\.\./evil': refused"):
        registry.download(1, tmp_path / "to")


def test_two_that_download_at_once_put_one_copy_there(
    registry: Registry, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a copy is reading it by now: it is not replaced under them."""
    bundle = make("b1")
    registry.register(bundle)
    copies: list[Path] = []
    second = threading.Barrier(2)

    def slowly(place: Path) -> contextlib.AbstractContextManager[Path]:
        copies.append(place)
        with contextlib.suppress(threading.BrokenBarrierError):
            second.wait(timeout=0.5)
        return replacing_folder(place)

    monkeypatch.setattr("recsys.registry.store.replacing_folder", slowly)
    with ThreadPoolExecutor(2) as two:
        places = set(two.map(lambda _: registry.download(1, tmp_path / "to"), range(2)))
    assert places == {tmp_path / "to" / "b1"}
    assert fingerprint_folder(places.pop()) == fingerprint_folder(bundle)
    assert len(copies) == 1


def test_a_moved_home_still_serves_and_registers(registry: Registry, make: Make, home: Path, tmp_path: Path) -> None:
    first = make("b1")
    registry.register(first)
    moved = tmp_path / "moved"
    home.rename(moved)
    after = Registry(None, moved, NAME)
    assert fingerprint_folder(after.download(1, tmp_path / "to")) == fingerprint_folder(first)
    info = after.register(make("b2"))
    assert (moved / "artifacts" / NAME / info.run_id / "artifacts" / "bundle" / "bundle.json").exists()
    assert after.register(make("b3")).version == 3
    assert not home.exists()
    experiments = after._backend.client.search_experiments()
    assert sorted(e.name for e in experiments if e.name != "Default") == [NAME, f"{NAME} (2)"]


# -- compare --------------------------------------------------------------------------------------------------------


def test_compare_gives_no_verdict_without_ranks(registry: Registry, make: Make) -> None:
    registry.register(make("b1", ndcg=0.20))
    registry.register(make("b2", ndcg=0.25, parameters={"ranker": {"leaves": 63}, "seed": 7, "new": True}))
    found = registry.compare(1, 2)
    assert (found.a.version, found.b.version, found.worse) == (1, 2, None)
    assert [(p.name, p.a, p.b) for p in found.parameters] == [("new", None, "true"), ("ranker.leaves", "31", "63")]
    assert [(m.name, m.difference) for m in found.metrics] == [
        ("latency_p99_ms", 0.0),
        ("ndcg@10", pytest.approx(0.05)),
        ("retrieval_ndcg@10", 0.0),
    ]
    assert found.verdict.startswith("No verdict, because the two cannot be compared event by event: ")


def test_compare_refuses_a_verdict_over_different_data(registry: Registry, make: Make) -> None:
    grown = {
        "name": "demo",
        "synthetic": True,
        "layout": "x",
        "fingerprint": "b" * 64,
        "n_events": 1,
        "n_items": 1,
        "n_users": 1,
    }
    registry.register(make("b1"))
    registry.register(make("b2", ndcg=0.5, dataset=grown))
    found = registry.compare(1, 2)
    assert found.worse is None
    assert "version 1 was measured on demo (synthetic, not MovieLens) (data aaaaaaaaaaaa)" in found.verdict


# -- surroundings ---------------------------------------------------------------------------------------------------


def test_an_unreachable_server_is_an_error_within_seconds(tmp_path: Path, make: Make) -> None:
    registry = Registry("http://user:secret@127.0.0.1:9", tmp_path / "unused", NAME)
    bundle = make("b1")
    started = time.monotonic()
    for call in (registry.versions, registry.rollback, lambda: registry.register(bundle)):
        with pytest.raises(RegistryError) as caught:
            call()
        assert "in the registry at http://***@127.0.0.1:9: " in str(caught.value)
        assert "Check that the server runs" in str(caught.value)
        assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 60  # not the minutes that MLflow would take
    assert not (tmp_path / "unused").exists()


def test_a_read_only_registry_is_read_and_not_written(
    registry: Registry, make: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register(make("b1"))
    registry.promote(1)
    (home / ".lock").unlink()
    (home / ".lock").mkdir()  # what cannot be opened for writing, even by root

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == ".lock":
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return opened(self, *arguments, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", refused)
    reader = Registry(None, home, NAME)
    assert [v.aliases for v in reader.versions()] == [("champion",)]
    assert reader.download("champion", tmp_path / "to").name == "b1"


@pytest.mark.parametrize("name", ["why?x", "a%41b", "a home"])
def test_a_home_of_any_name_holds_its_registry(name: str, make: Make, tmp_path: Path, empty_database: Path) -> None:
    home = tmp_path / name / "mlflow"
    home.mkdir(parents=True)
    shutil.copyfile(empty_database, home / "mlflow.db")
    before = {p.name for p in tmp_path.iterdir()} | {"built"}
    Registry(None, home, NAME).register(make("b1"))
    assert Registry(None, home, NAME).look_up("challenger").bundle_id == "b1"
    assert {p.name for p in tmp_path.iterdir()} == before


def test_a_file_that_is_no_database_is_an_error_within_seconds(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to look like one" * 50)
    started = time.monotonic()
    with pytest.raises(RegistryError, match=r"Could not list the versions in .*Check that .* can be written"):
        Registry(None, tmp_path, NAME).versions()
    assert time.monotonic() - started < 10


def test_the_error_of_a_model_that_cannot_be_read_is_not_taken_for_an_empty_registry(
    registry: Registry, make: Make, home: Path
) -> None:
    registry.register(make("b1"))
    with sqlite3.connect(home / "mlflow.db") as connection:
        connection.execute("DROP TABLE registered_model_aliases")
    connection.close()
    with pytest.raises(RegistryError, match="Could not list the versions"):
        registry.versions()


def test_creating_what_another_process_just_created_is_no_error(
    registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register(make("b1"))
    backend = registry._backend
    asked: list[str] = []
    find = backend.client.get_experiment_by_name

    def not_at_first(name: str) -> Any:
        asked.append(name)
        return None if len(asked) == 1 else find(name)

    monkeypatch.setattr(backend.client, "get_experiment_by_name", not_at_first)
    assert registry.register(make("b2")).version == 2
    assert asked == [NAME, NAME]


def test_an_error_while_creating_the_model_is_reported(registry: Registry, make: Make) -> None:
    bundle = make("b1")
    nameless = Registry(None, registry._backend.folder, "a/b")
    with pytest.raises(RegistryError, match="Could not register a bundle"):
        nameless.register(bundle)


def test_opening_is_silent_and_without_telemetry(tmp_path: Path) -> None:
    """In a fresh process: importing the registry imports no MLflow; using it prints nothing and calls nobody."""
    code = f"""
import os, sys
from pathlib import Path
from recsys.registry import Registry
assert "mlflow" not in sys.modules
registry = Registry(None, Path({str(tmp_path)!r}), "recsys-demo")
assert "mlflow" not in sys.modules
with registry._backend.writing("open") as client:
    pass
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None
assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST") and "MLFLOW" not in k}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "false"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_settings_of_a_person_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "99")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    load_mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
