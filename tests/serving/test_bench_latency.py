"""`recsys bench latency` from end to end on the small world; its report, tables, pictures and exit codes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from recsys.bundle import load_bundle
from recsys.errors import ConfigError, MissingArtefactError, RecsysError
from recsys.evaluation.tables import bundle_of
from recsys.workspace import DatasetWorkspace
from serving.bench import bare, catalogue, device, in_process, latency, report, target, wrk
from serving.bench.cli import app
from serving.bench.enlarge import grown_bundle, sibling
from serving.bench.homes import registry_of, temporary_home
from serving.bench.latency import Options, Progress
from serving.bench.load import Load, Plan
from serving.model import ServedModel
from serving.service import Service

from .serving_client import connected
from .serving_world import ITEMS, ServingWorld

runner = CliRunner()
PNG = b"\x89PNG\r\n"


@pytest.fixture
def url(world: ServingWorld, service: Service) -> Iterator[str]:
    with connected(world.settings, service) as client:
        yield str(client.base_url).rstrip("/")


@pytest.mark.parametrize("command", [["bench"], ["bench", "latency"], ["bench", "soak"]])
def test_help_teaches(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output


@pytest.mark.parametrize("command", ["latency", "soak"])
def test_without_data_the_next_step_is_named(command: str, tmp_path: Path) -> None:
    result = runner.invoke(app, ["bench", command, "--home", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "recsys data" in str(result.exception)


def test_sections_are_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown section 'speed'; choose of in-process"):
        Options(sections=("closed", "speed"))


# -- end to end ------------------------------------------------------------------------------------------------------


def test_the_whole_report(world: ServingWorld, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = ["bench", "latency", "--home", str(world.home.root.parent), "-n", "20", "--warmup", "2", "--quick"]
    asked += ["--sections", "in-process,closed,sweep,open,device", "--device", "cpu", "--url", url, "--wrk"]
    monkeypatch.setattr(wrk.shutil, "which", lambda _: None)
    monkeypatch.setattr(latency, "CLIENTS", (1, 2))
    slow = runner.invoke(app, [*asked, "--budget-ms", "60000"])
    assert slow.exit_code == 0, slow.output
    shown = slow.stdout
    assert shown.splitlines()[-1].startswith("p99 over HTTP is ")
    assert shown.splitlines()[-1].endswith(" ms, within the budget of 60000 ms.")
    for words in (
        "tiny-world (synthetic, not MovieLens)",
        "LightGBM predict",
        "overhead: full answer / sum",
        wrk.MISSING,
    ):
        assert words in shown
    assert "s left)" in slow.stderr

    found = json.loads((world.home.reports / "latency.json").read_text())
    assert set(found) == {"about", "options", "dataset", "model", "in_process", "http", "device", "verdict"}
    for fact in ("command", "code", "machine", "processor", "versions", "threads", "load_average_before", "seconds"):
        assert found["about"][fact], fact
    assert found["model"]["bundle_id"] == world.bundle_id
    assert found["dataset"]["synthetic"] is True
    assert found["options"]["users"] == 60
    assert set(found["http"]) >= {"closed", "bare", "ratio_to_bare", "against_bare", "sweep", "wrk", "ready_s"}
    assert set(found["http"]["closed"]) == {"1", "2"}
    one = found["http"]["closed"]["1"]
    assert one["statuses"] == {"200": 20}
    assert one["latency"]["n"] == 20
    assert one["latency"]["p50_ms"] <= one["latency"]["p99.9_ms"] <= one["latency"]["max_ms"] * 1.01
    assert found["http"]["ratio_to_bare"]["1"] > 1
    one_p50 = found["http"]["against_bare"]["one client, p50"]
    assert one_p50["bare_answers"] == pytest.approx(found["http"]["ratio_to_bare"]["1"])
    assert one_p50["ms"] == one["latency"]["p50_ms"]
    assert set(found["http"]["against_bare"]) == set(latency.AIMS_MS)
    assert found["http"]["wrk"][0] == {"message": wrk.MISSING}

    inside = found["in_process"]
    assert set(inside["ranked"]) == {"60"}  # what this bundle keeps
    depth = inside["ranked"]["60"]
    assert set(depth["stages"]) == {"state", "retrieval", "features", "ranking", "ordering", "total"}
    # neither item-kNN nor iALS are retrievers of this bundle
    assert set(depth["bare"]) == {*bare.IN_SUM, *bare.BESIDE} - {"item_knn", "ials"}
    assert depth["bare_sum_ms"] == pytest.approx(sum(depth["bare"][n] for n in bare.IN_SUM if n in depth["bare"]))
    assert depth["overhead"] == pytest.approx(depth["stages"]["total"]["p50_ms"] / depth["bare_sum_ms"])
    processor = depth["cpu"]
    assert processor["overhead"] == pytest.approx(processor["total_ms"] / processor["bare_sum_ms"])
    assert set(processor["bare"]) == set(depth["bare"])
    assert found["device"]["same_as_cpu"] == 1.0

    text = (world.home.reports / "latency.md").read_text()
    assert bundle_of(text) == world.bundle_id
    assert "| overhead: full answer / sum |" in text
    for name in ("latency-stages.png", "latency-clients.png"):
        assert (world.home.reports / name).read_bytes().startswith(PNG)

    fast = runner.invoke(app, [*asked[:8], "--url", url, "--sections", "closed", "--budget-ms", "1"])
    assert fast.exit_code == 1, fast.output
    assert fast.stdout.splitlines()[-1].endswith("OVER the budget of 1 ms.")
    assert not (world.home.reports / "latency-stages.png").exists()  # a picture of another run


def test_a_foreign_service_is_not_measured(world: ServingWorld, url: str) -> None:
    there = world.settings.home
    other = DatasetWorkspace(there.root, "other-data")
    settings = world.settings.model_copy(update={"home": other})
    with pytest.raises(RecsysError, match="serves tiny-world, not other-data"):
        latency.run(settings, Options(sections=("closed",), url=url), "recsys", lambda _: None)


def test_a_service_of_its_own_and_an_enlarged_world(world: ServingWorld) -> None:
    from recsys.feature_store import FeatureStore

    store = FeatureStore(world.settings.feature_store)
    said: list[str] = []
    try:
        model = ServedModel.load(world.settings, store, world.end)
        found = catalogue.measure(
            world.settings,
            model.bundle,
            store,
            list(range(1, 11)),
            Options(requests=10, warmup=1),
            now=world.end,
            report=said.append,
            sizes=(200,),
            world=200,
        )
    finally:
        store.close()
    assert [(i["vectors"], i["kind"], i["recall"]) for i in found["indexes"]] == [
        (80, "exact", 1.0),
        (200, "exact", 1.0),
    ]
    grown = found["world"]
    assert grown["n_items"] == 200
    assert grown["http"]["statuses"] == {"200": 10}
    assert set(grown["in_process"]) == {"state", "retrieval", "features", "ranking", "ordering", "total"}
    assert grown["ready_s"] > 0
    assert grown["resident_mib"] > 50
    assert any("200 items over HTTP" in line for line in said)
    with pytest.raises(RecsysError, match="No ready service"):
        target.Target("http://127.0.0.1:9").card()


def test_what_no_service_answers_is_told(world: ServingWorld) -> None:
    with pytest.raises(RecsysError, match="No ready service at http"):
        latency.run(world.settings, Options(sections=("closed",), url="http://127.0.0.1:9"), "recsys", lambda _: None)


def test_a_service_that_does_not_start_says_why(world: ServingWorld, tmp_path: Path) -> None:
    home = DatasetWorkspace(tmp_path / "empty", "empty")
    home.data.mkdir(parents=True)
    settings = world.settings.model_copy(update={"home": home})
    with pytest.raises(RecsysError, match=r"The service did not start: .*recsys-empty"), target.own_service(settings):
        pass


# -- parts -----------------------------------------------------------------------------------------------------------


def test_users_are_always_the_same(world: ServingWorld, tmp_path: Path) -> None:
    assert target.users_of(world.home, 5) == target.users_of(world.home, 5)
    assert len(set(target.users_of(world.home))) == 60
    with pytest.raises(MissingArtefactError, match="recsys data"):
        target.users_of(DatasetWorkspace(tmp_path, "none"))


def test_the_bare_tower_gives_the_products_vector(world: ServingWorld, loaded: Service) -> None:
    """What is compared does the same work: the same user vector, the same best items."""
    recommender = load_bundle(world.home.bundles / world.bundle_id).recommender
    libraries = bare.BareLibraries(world.home.bundles / world.bundle_id, recommender, loaded.store)
    for user_id in (1, 2, 999):  # the last is unknown: an empty history
        states = in_process.states_of(recommender, loaded.store, user_id, world.end)
        calls = libraries.calls(bare.Asked(user_id, states, np.zeros((3, len(recommender.feature_names)), "f4"), {}))
        np.testing.assert_allclose(calls["tower"](), calls["own_tower"](), atol=1e-5)
        for name in calls:
            calls[name]()
        ease = next(s for s in recommender.retrievers if s.name == "ease")
        whole = ease.answer(states).at(np.arange(ITEMS)[None, :])[0]
        product = calls["ease"]()
        product = product.toarray() if hasattr(product, "toarray") else product
        np.testing.assert_allclose(np.asarray(product).ravel(), whole[libraries._stored["ease"]["head"]], atol=1e-5)


def test_an_enlarged_bundle_is_whole_and_keeps_the_real_items(world: ServingWorld, tmp_path: Path) -> None:
    retriever = world.home.bundles / world.bundle_id
    growth = grown_bundle(retriever, tmp_path / "grown-500", 500)
    before, after = load_bundle(retriever).recommender, load_bundle(tmp_path / "grown-500").recommender
    assert load_bundle(tmp_path / "grown-500").facts.bundle_id == "grown-500"
    assert len(after.catalogue) == 500
    assert after.catalogue.item_ids[:ITEMS].tolist() == before.catalogue.item_ids.tolist()
    assert len(set(after.catalogue.item_ids.tolist())) == 500
    np.testing.assert_array_equal(after.catalogue.genres[ITEMS:], before.catalogue.genres[growth.like])
    np.testing.assert_allclose(after.unit_vectors[:ITEMS], before.unit_vectors, atol=1e-6)
    with pytest.raises(ConfigError, match="holds 80 items already"):
        grown_bundle(retriever, tmp_path / "grown-80", 80)


def test_the_tower_of_an_enlarged_bundle_knows_its_items(world: ServingWorld, tmp_path: Path) -> None:
    """The vectors that are searched are those that the towers give."""
    grown_bundle(world.home.bundles / world.bundle_id, tmp_path / "grown-300", 300)
    bundle = load_bundle(tmp_path / "grown-300")
    vectors = device.tower_vectors(device.load_tower(bundle))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, bundle.recommender.unit_vectors, atol=1e-5)


def test_a_sibling_is_another_version(world: ServingWorld, tmp_path: Path) -> None:
    made = sibling(world.home.bundles / world.bundle_id, tmp_path / "again")
    assert load_bundle(made).facts.bundle_id == "again"


def test_a_temporary_home_is_gone_and_leaves_the_real_one_alone(world: ServingWorld) -> None:
    before = registry_of(world.settings).versions()
    with temporary_home(world.settings) as there:
        place = there.home.root
        assert (there.home.data / "users.parquet").exists()
        assert registry_of(there).versions() == []
        assert there.home.root != world.home.root
    assert not place.exists()
    assert registry_of(world.settings).versions() == before
    assert before


def test_without_an_accelerator_it_says_so(
    world: ServingWorld, loaded: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    bundle = load_bundle(world.home.bundles / world.bundle_id)
    found = device.measure(bundle, loaded.store, [1], "cuda", now=world.end)
    assert found == {"device": "cuda", "message": "no CUDA device"}
    title, _, rows, note = report._device(found)
    assert (title, rows, note) == ("Device cuda", [], "no CUDA device.")


def test_progress_counts_down() -> None:
    said: list[str] = []
    progress = Progress({"closed": 10.0, "sweep": 20.0}, said.append)
    progress.begin("closed", "closed loop")
    progress.note("fine")
    progress.begin("sweep", "rates")
    assert said == ["bench: closed loop (about 30 s left)", "bench:   fine", "bench: rates (about 20 s left)"]


@pytest.mark.parametrize(
    ("found", "where", "within"),
    [
        ({"http": {"closed": {"1": {"latency": {"n": 1, "p99_ms": 5.0}}}}}, "over HTTP", True),
        ({"http": {"closed": {"1": {"latency": {"n": 1, "p99_ms": 11.0}}}}}, "over HTTP", False),
        ({"http": {"open": {"latency": {"n": 0}}}}, "over HTTP in an open loop", False),
        (
            {"in_process": {"headline": "5", "ranked": {"5": {"stages": {"total": {"p99_ms": 9.0}}}}}},
            "in process",
            True,
        ),
        ({}, None, True),
    ],
)
def test_the_verdict(found: dict[str, Any], where: str | None, within: bool) -> None:
    verdict = latency.verdict(found, 10.0)
    assert (verdict["where"], verdict["within_budget"]) == (where, within)
    sentence = report.verdict_sentence({"verdict": verdict})
    assert ("OVER" in sentence) == (not within)


# -- wrk -------------------------------------------------------------------------------------------------------------


LOAD = Load(1.0, 100, {"n": 100}, {}, {}, {}, 0, {}, [(1000, 100)], {}, 0.0, 100.0, 1.0)


def test_what_wrk_prints_is_read() -> None:
    said = (
        'Running 3s test\nFOUND {"requests": 3, "us": 3000, "errors": 0, "counted": [[900, 2], [1900, 1], [2900, 1]]}\n'
    )
    assert wrk.parse(said, 1) == wrk.Turn(3, 0.003, [(900, 2), (2900, 1)]), "wrk added 2900 - 1000, one mean"
    with pytest.raises(RecsysError, match="2 errors in 10 requests"):
        wrk.parse('FOUND {"requests": 10, "us": 1, "errors": 2, "counted": []}', 1)
    with pytest.raises(RecsysError, match="does not hold its 3 requests"):
        wrk.parse(said.replace("[900, 2]", "[900, 3]"), 1)
    with pytest.raises(RecsysError, match="wrk did not finish: unable to connect"):
        wrk.parse("unable to connect", 1)


@pytest.mark.parametrize("seed", range(20))
def test_what_wrk_adds_is_taken_out_again(seed: int) -> None:
    """Against its `stats_correct`, as its retriever has it."""
    rng = np.random.default_rng(seed)
    measured = {int(us): int(n) for us, n in zip(rng.integers(1, 400, 40), rng.integers(1, 5, 40), strict=True)}
    interval = int(rng.integers(5, 60))
    added = dict(measured)
    for us in range(2 * interval, max(measured) + 1):
        m = us - interval
        while added.get(us) and m > interval:
            added[m] = added.get(m, 0) + added[us]
            m -= interval
    assert wrk.as_measured(sorted(added.items()), interval) == sorted(measured.items())


@pytest.mark.parametrize(("p50_ms", "agrees"), [(1.1, True), (1.2, False)])
def test_wrk_and_we_are_compared_by_all_turns(p50_ms: float, agrees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow turn of wrk's moves its p99, not the median of all its durations."""
    us = iter([1000, 1000, 30_000, *[1000] * (wrk.TURNS - 3)])
    monkeypatch.setattr(wrk.shutil, "which", lambda _: "/bin/wrk")
    monkeypatch.setattr(wrk, "run", lambda *_: wrk.Turn(100, 1.0, [(next(us), 100)]))
    counted = [(round(1000 * p50_ms), 90), (30_000, 10)]
    ours = replace(LOAD, latency={"n": 100}, counted=counted)
    found = wrk.compare(Plan("http://x", ("/",)), lambda _: ours)
    assert found["wrk"] == {"rate": 100.0, "p50_ms": pytest.approx(1.0), "p99_ms": pytest.approx(30.0, rel=1e-3)}
    assert found["ratio"]["p50_ms"] == pytest.approx(p50_ms)
    assert found["agrees"] is agrees
    assert ("DISAGREE" in report._wrk(found)[3]) == (not agrees)


def test_where_wrk_has_errors_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> dict[str, float]:
        raise RecsysError("wrk had 3 errors in 103 requests")

    monkeypatch.setattr(wrk.shutil, "which", lambda _: "/bin/wrk")
    monkeypatch.setattr(wrk, "run", run)
    found = wrk.compare(Plan("http://x", ("/",), clients=4), lambda _: LOAD)
    assert found == {"clients": 4, "message": "nothing to compare: wrk had 3 errors in 103 requests"}
    assert report._wrk(found) == ("wrk", ["", ""], [], found["message"])


@pytest.mark.skipif(wrk.shutil.which("wrk") is None, reason="wrk is not installed")
def test_the_real_wrk(url: str) -> None:
    program = wrk.shutil.which("wrk")
    assert program is not None
    found = wrk.run(program, Plan(url, ("/healthz", "/v1/model"), clients=2, seconds=1.0))
    assert found.answers > 1
    assert sum(count for _, count in found.counted) == found.answers
    assert 0.9 < found.seconds < 2
    with pytest.raises(RecsysError, match="wrk had"):
        wrk.run(program, Plan(url, ("/v1/nothing",), seconds=1.0))
