"""The command `recsys serve`: help, and what it says when something is missing."""

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recsys.errors import ConfigError, RecsysError
from recsys.workspace import Workspace
from serving.cli import app

from .serving_world import ServingWorld

runner = CliRunner()


@pytest.fixture(autouse=True)
def _logs_stay_as_they_were() -> Iterator[None]:
    """The command sends them to a stream that ends with it."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def test_importing_the_commands_is_cheap() -> None:
    code = "import sys, serving.cli; print([m for m in ('fastapi', 'torch', 'feast', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("command", [["serve"]])
def test_help_teaches(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output


@pytest.mark.parametrize("command", [["serve"]])
def test_without_data_the_next_step_is_named(command: list[str], tmp_path: Path) -> None:
    result = runner.invoke(app, [*command, "--home", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "recsys data" in str(result.exception)


def test_serve_without_a_champion_ends_with_its_reason(tmp_path: Path) -> None:
    home = Workspace(tmp_path)
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


def test_an_address_beyond_this_machine_needs_a_key(world: ServingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_API_KEY", raising=False)
    home = ["--home", str(world.home.root.parent), "--port", "0"]
    result = runner.invoke(app, ["serve", *home, "--host", "0.0.0.0"])
    assert isinstance(result.exception, ConfigError)
    assert "RECSYS_API_KEY" in str(result.exception)


def test_options_that_cannot_be_are_told(world: ServingWorld) -> None:
    home = ["--home", str(world.home.root.parent), "--port", "0"]
    for options, said in (
        (["--allow-origin", "example.org"], "is no origin"),
        (["--log-format", "xml"], "log format is 'xml'"),
        (["--log-level", "loud"], "log level is 'loud'"),
    ):
        result = runner.invoke(app, ["serve", *home, *options])
        assert isinstance(result.exception, ConfigError), options
        assert said in str(result.exception)
