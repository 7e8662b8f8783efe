"""A missing server is a skip that says what to install, or a failure where servers are required."""

import shutil

import pytest

from . import native


def test_a_missing_program_is_skipped_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(native.REQUIRED, raising=False)
    missing: list[str] = []
    monkeypatch.setattr(native, "MISSING", missing)
    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match="no-such-server is not installed; apt-get install a-package"):
            native.binary("no-such-server", "a-package")
    assert missing == ["no-such-server is not installed; apt-get install a-package"]


def test_a_missing_program_fails_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=r"no-such-server is not installed.*=1 asks for it"):
        native.binary("no-such-server", "a-package")


def test_a_server_that_does_not_start_says_why(redis_server: native.RedisServer) -> None:
    second = native.RedisServer()
    second.port = redis_server.port
    second._answers = lambda: False  # type: ignore[method-assign]  # the first server would answer
    with pytest.raises(RuntimeError, match=r"(?s)did not start.*Address already in use"):
        second.start()
    shutil.rmtree(second.folder)
