"""The one place that reads the environment: defaults, and what is refused."""

import traceback
from pathlib import Path

import pytest

from recsys.errors import ConfigError
from recsys.settings import read_settings
from recsys.workspace import Workspace


def test_defaults_are_embedded_and_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "DATASET", "API_KEY", "REDIS_CONNECTION", "ONLINE_STORE", "EVENTS_URL", "FOO"):
        monkeypatch.setenv(f"RECSYS_{name}", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    settings = read_settings()
    assert (settings.home, settings.online_store, settings.mlflow_tracking_uri) == (Path(".recsys"), "sqlite", None)
    assert settings.api_key is None


def test_a_command_s_home_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECSYS_HOME", "/elsewhere")
    assert read_settings(tmp_path).home == tmp_path
    assert read_settings().home == Path("/elsewhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RECSYS_ONLINE_STORE", r"RECSYS_ONLINE_STORE is 'foo': Input should be 'sqlite' or 'redis'"),
        ("RECSYS_HOEM", "RECSYS_HOEM, which means nothing here; known are RECSYS_API_KEY"),
        ("RECSYS_MLFLOW_TRACKING_URI", r"RECSYS_MLFLOW_TRACKING_URI, which means nothing.*, MLFLOW_TRACKING_URI\."),
    ],
)
def test_a_value_that_cannot_be_and_an_unknown_variable_are_named(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "foo")
    with pytest.raises(ConfigError, match=message):
        read_settings()


def test_what_the_feast_command_needs_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_FEAST_PROJECT", "x")
    monkeypatch.setenv("RECSYS_FEATURES", "/x")
    read_settings()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("too-short", "at least 16"),
        ("пароль-пароль-пароль", "printable ASCII"),
        (" 0123456789abcdef", "printable ASCII"),
        ("0123456789abcde\n", "printable ASCII"),
        ("0123456789\tabcdef", "printable ASCII"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(
    key: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_API_KEY", key)
    with pytest.raises(ConfigError, match=rf"RECSYS_API_KEY cannot be used: .*{reason}") as refused:
        read_settings()
    assert key not in "".join(traceback.format_exception(refused.value))


def test_the_key_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_API_KEY", "0123456789abcdef")
    settings = read_settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(settings)


def test_redis_and_its_address_go_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = Workspace(tmp_path).dataset("x")
    monkeypatch.setenv("RECSYS_ONLINE_STORE", "redis")
    with pytest.raises(ConfigError, match="set RECSYS_REDIS_CONNECTION"):
        read_settings().feature_store(home)
    monkeypatch.setenv("RECSYS_REDIS_CONNECTION", "127.0.0.1:6379")
    assert read_settings().feature_store(home).redis_connection == "127.0.0.1:6379"
    monkeypatch.setenv("RECSYS_ONLINE_STORE", "sqlite")
    with pytest.raises(ConfigError, match="set RECSYS_ONLINE_STORE to redis"):
        read_settings().feature_store(home)
