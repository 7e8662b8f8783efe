"""The one place that reads the environment: defaults, and what is refused."""

import traceback
from pathlib import Path

import pytest

from recsys.errors import ConfigError
from recsys.settings import read_settings
from recsys.workspace import Workspace


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
    with pytest.raises(ConfigError, match="RECSYS_HOEM, which means nothing here; known are RECSYS_API_KEY"):
        read_settings()


def test_a_variable_that_has_another_name_is_not_taken_for_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    with pytest.raises(ConfigError, match=r"RECSYS_MLFLOW_TRACKING_URI, which means nothing.*, MLFLOW_TRACKING_URI\."):
        read_settings()


def test_what_the_feast_command_needs_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_FEAST_PROJECT", "x")
    monkeypatch.setenv("RECSYS_FEATURES", "/x")
    read_settings()


def test_the_key_is_a_secret_even_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_API_KEY", "too-short")
    with pytest.raises(ConfigError, match=r"RECSYS_API_KEY cannot be used: .*at least 16") as refused:
        read_settings()
    assert "too-short" not in "".join(traceback.format_exception(refused.value))
    monkeypatch.setenv("RECSYS_API_KEY", "0123456789abcdef")
    settings = read_settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(settings)


def test_no_key_and_no_traces_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_API_KEY", raising=False)
    monkeypatch.setenv("RECSYS_OTEL_ENDPOINT", "http://127.0.0.1:4318")
    settings = read_settings()
    assert (settings.api_key, settings.otel_endpoint) == (None, "http://127.0.0.1:4318")


@pytest.mark.parametrize(
    "name", ["HOME", "DATASET", "API_KEY", "REDIS_CONNECTION", "ONLINE_STORE", "EVENTS_URL", "FOO"]
)
def test_an_empty_variable_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = read_settings()
    monkeypatch.setenv(f"RECSYS_{name}", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert read_settings() == default


@pytest.mark.parametrize(
    "key", ["пароль-пароль-пароль", " 0123456789abcdef", "0123456789abcde\n", "0123456789\tabcdef"]
)
def test_a_key_that_no_header_can_carry_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_API_KEY", key)
    with pytest.raises(ConfigError, match=r"RECSYS_API_KEY cannot be used: .*printable ASCII"):
        read_settings()


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


@pytest.mark.parametrize(
    "key", ["schlüssel-0123456789", " padded-0123456789", "padded-0123456789 ", "line\nbreak-012345"]
)
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("RECSYS_API_KEY", key)
    with pytest.raises(ConfigError, match=r"RECSYS_API_KEY cannot be used: .*a header can carry") as refused:
        read_settings()
    assert key not in str(refused.value)
