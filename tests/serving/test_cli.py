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


def test_help_teaches() -> None:
    result = runner.invoke(app, ["serve", "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output


def test_without_data_or_a_champion_the_reason_is_named(tmp_path: Path) -> None:
    result = runner.invoke(app, ["serve", "--home", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
    assert "recsys data" in str(result.exception)
    Workspace(tmp_path).dataset("empty").data.mkdir(parents=True)
    result = runner.invoke(app, ["serve", "--home", str(tmp_path), "--dataset", "empty", "--port", "0"])
    assert isinstance(result.exception, RecsysError)
    assert "recsys-empty" in str(result.exception)


def test_a_taken_port_is_reported_at_once(world: ServingWorld) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = runner.invoke(app, ["serve", "--home", str(world.home.root.parent), "--port", str(port)])
    assert isinstance(result.exception, RecsysError)
    assert f"Cannot listen on 127.0.0.1:{port}" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "RECSYS_API_KEY"),
        (["--log-format", "xml"], "log format is 'xml'"),
        (["--log-level", "loud"], "log level is 'loud'"),
    ],
)
def test_wrong_options_are_refused(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.delenv("RECSYS_API_KEY", raising=False)
    result = runner.invoke(app, ["serve", "--home", str(world.home.root.parent), "--port", "0", *options])
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)
