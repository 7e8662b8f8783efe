"""The one place that reads the environment: defaults, and what is refused."""

from pathlib import Path

import pytest

from recsys.errors import ConfigError
from recsys.settings import read_settings


def test_defaults_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = read_settings()
    assert (settings.home, settings.online_store, settings.mlflow_tracking_uri) == (Path(".recsys"), "sqlite", None)


def test_a_command_s_home_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECSYS_HOME", "/elsewhere")
    assert read_settings(tmp_path).home == tmp_path
    assert read_settings().home == Path("/elsewhere")


def test_a_value_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_ONLINE_STORE", "foo")
    with pytest.raises(ConfigError, match=r"RECSYS_ONLINE_STORE is 'foo': Input should be 'sqlite' or 'redis'"):
        read_settings()


def test_a_variable_that_means_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_HOEM", "/x")
    with pytest.raises(ConfigError, match="RECSYS_HOEM, which means nothing here; known are RECSYS_DATASET"):
        read_settings()


def test_what_the_feast_command_needs_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_FEAST_PROJECT", "x")
    monkeypatch.setenv("RECSYS_FEATURES", "/x")
    read_settings()
