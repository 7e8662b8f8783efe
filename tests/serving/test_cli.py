"""The commands: help, what they say when something is missing, and the benchmark from end to end."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recsys.errors import ConfigError, MissingArtefactError, RecsysError
from recsys.home import DatasetHome, Home
from serving import bench
from serving.cli import app
from serving.service import Service

from .serving_client import connected
from .serving_world import ServingWorld

runner = CliRunner()


def test_importing_the_commands_is_cheap() -> None:
    code = "import sys, serving.cli; print([m for m in ('fastapi', 'torch', 'feast', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("command", [["serve"], ["bench"], ["bench", "latency"]])
def test_help_teaches(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output


@pytest.mark.parametrize("command", [["serve"], ["bench", "latency"]])
def test_without_data_the_next_step_is_named(command: list[str], tmp_path: Path) -> None:
    result = runner.invoke(app, [*command, "--home", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "recsys data" in str(result.exception)


def test_serve_without_a_champion_ends_with_its_reason(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.dataset("empty").data.mkdir(parents=True)
    result = runner.invoke(app, ["serve", "--home", str(tmp_path), "--dataset", "empty", "--port", "0"])
    assert isinstance(result.exception, RecsysError)
    assert "recsys-empty" in str(result.exception)


def test_a_taken_port_is_told_at_once(world: ServingWorld) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = runner.invoke(app, ["serve", "--home", str(world.home.root.parent), "--port", str(port)])
    assert isinstance(result.exception, RecsysError)
    assert f"Cannot listen on 127.0.0.1:{port}" in str(result.exception)


def test_bench_latency(world: ServingWorld, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = ["--home", str(world.home.root.parent), "-n", "20", "--warmup", "2"]
    with connected(world.settings, service) as client:
        url = str(client.base_url)
        slow = runner.invoke(app, ["bench", "latency", *asked, "--url", url, "--budget-ms", "60000"])
        fast = runner.invoke(app, ["bench", "latency", *asked, "--url", url, "--budget-ms", "1"])
    assert slow.exit_code == 0, slow.output
    assert slow.stdout.splitlines()[-1].endswith("ms, within the budget of 60000 ms.")
    assert "over HTTP" in slow.stdout
    assert "tiny-world (synthetic, not MovieLens)" in slow.stdout
    assert fast.exit_code == 1, fast.output
    assert fast.stdout.splitlines()[-1].endswith("OVER the budget of 1 ms.")
    report = json.loads((world.home.reports / "latency.json").read_text())
    assert report["within_budget"] is False
    assert report["dataset"]["synthetic"] is True
    assert {"retrieval", "features", "ranking", "ordering", "total", "state read"} == set(report["in_process"])
    assert set(report["http"]["http"]) == {"p50_ms", "p95_ms", "p99_ms"}
    assert report["about"]["versions"]["torch"]


def test_a_benchmark_of_its_own_service(world: ServingWorld) -> None:
    with bench.own_service(world.settings) as url:
        assert bench.describe(url)["bundle_id"] == world.bundle_id
        measured = bench.over_http(url, [1, 2, 3], 5, 6, 1)
    assert measured["http"]["p50_ms"] >= measured["inside the service"]["p50_ms"]
    with pytest.raises(RecsysError, match="No ready service"):
        bench.describe(url)


def test_bench_says_what_is_wrong_with_a_url() -> None:
    with pytest.raises(RecsysError, match="No ready service at http"):
        bench.describe("http://127.0.0.1:9")
    with pytest.raises(RecsysError, match="stopped answering"):
        bench.over_http("http://127.0.0.1:9", [1], 10, 1, 0)


def test_bench_needs_users(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefactError, match="recsys data"):
        bench.users_of(DatasetHome(tmp_path, "none"))


def test_users_of_a_benchmark_are_always_the_same(world: ServingWorld) -> None:
    assert bench.users_of(world.home, 5) == bench.users_of(world.home, 5)
    assert len(set(bench.users_of(world.home))) == 60
