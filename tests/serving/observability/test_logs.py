"""Log lines: one a record, never with a secret, few where the same warning repeats."""

import io
import json
import logging
import time
from collections.abc import Iterator

import pytest

from recsys.errors import ConfigError
from serving.observability import logs
from serving.observability.logs import HIDDEN, WARNINGS_A_SECOND, configure, log_request, request_id

ROUTE = "/v1/users/{user_id}/recommendations"
logger = logging.getLogger("serving.test")


@pytest.fixture
def stderr() -> Iterator[io.StringIO]:
    """For `configure` to write to; the logging of the tests comes back afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    chatty = {name: logging.getLogger(name).level for name in logs.CHATTY}
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in chatty.items():
        logging.getLogger(name).setLevel(before)


def objects(stderr: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stderr.getvalue().splitlines()]


def test_a_line_of_json_says_when_who_and_what(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_795_000_000.125)
    monkeypatch.setattr(time, "time_ns", lambda: 1_795_000_000_125_000_000)  # what logging asks from Python 3.13 on
    configure("json", stream=stderr)
    token = request_id.set("abc-1")
    logger.warning("answered without %s", "ranking", extra={"degraded": ["ranking"], "ms": 12.5, "level": "forged"})
    request_id.reset(token)
    logger.info("ready")
    first, second = objects(stderr)
    assert first == {
        "time": "2026-11-18T11:06:40.125Z",
        "level": "warning",
        "logger": "serving.test",
        "message": "answered without ranking",
        "request_id": "abc-1",
        "degraded": ["ranking"],
        "ms": 12.5,
    }
    assert "request_id" not in second


def test_a_line_of_text_names_its_fields_and_leaves_out_uvicorns_colours(stderr: io.StringIO) -> None:
    configure("text", stream=stderr)
    logger.info("Started", extra={"color_message": "\x1b[36mStarted", "port": 8000})
    assert stderr.getvalue().endswith("Z INFO serving.test: Started port=8000\n")


@pytest.mark.parametrize("log_format", logs.FORMATS)
@pytest.mark.parametrize("nasty", ["\n", "\r\n", "\x1b[2J", "\x85", "\u2028", "\x00", "\ud800"])
def test_nobody_forges_a_line(stderr: io.StringIO, log_format: str, nasty: str) -> None:
    configure(log_format, stream=stderr)
    logger.info("asked for %s", f"x{nasty}2026-11-21 INFO forged", extra={"route": f"/{nasty}forged"})
    try:
        raise ValueError(f"x{nasty}2026-11-21 INFO forged")
    except ValueError:
        logger.exception("failed")
    text = stderr.getvalue()
    assert all(c.isprintable() or c == "\n" for c in text)
    if log_format == "json":
        first, second = objects(stderr)
        assert first["message"] == f"asked for x{nasty}2026-11-21 INFO forged", "nothing is lost"
        assert "ValueError" in str(second["traceback"])
    else:
        first_line, *traceback = text.splitlines()[1:]
        assert " ERROR serving.test: failed" in first_line
        assert all(line.startswith("    ") for line in traceback)


@pytest.mark.parametrize("log_format", logs.FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        'the key k"3y-0123456789 came',
        "Authorization: Bearer k3y.abcdef=",
        "{'authorization': 'basic k3yabcdef'}",
        "redis://:k3y-of-redis@host:6379/0",
        "postgresql+psycopg://recsys:k3y@host/feast failed",
    ],
)
def test_secrets_are_hidden_wherever_they_stand(stderr: io.StringIO, log_format: str, text: str) -> None:
    configure(log_format, secrets=["", 'k"3y-0123456789'], stream=stderr)
    logger.error("%s", text, extra={"again": text}, exc_info=ValueError(text))
    assert stderr.getvalue().count(HIDDEN) == 3
    assert "3y" not in stderr.getvalue()


@pytest.mark.parametrize("text", ["no bearer of news", "http://host/a/b@c", "80% of 3 tokens"])
def test_what_is_no_secret_stays(stderr: io.StringIO, text: str) -> None:
    configure("json", stream=stderr)
    logger.info("%s", text)
    assert objects(stderr)[0]["message"] == text


def test_levels_and_formats_are_checked() -> None:
    with pytest.raises(ConfigError, match="'xml'; choose one of json, text"):
        configure("xml")
    with pytest.raises(ConfigError, match="'loud'; choose one of debug, info"):
        configure("json", "loud")


def test_configuring_again_replaces(stderr: io.StringIO) -> None:
    configure("text", stream=stderr)
    configure("json", "warning", stream=stderr)
    logger.info("not this")
    logger.warning("this")
    assert [line["message"] for line in objects(stderr)] == ["this"]


def test_a_flood_of_one_warning_is_cut_and_counted(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    configure("json", stream=stderr)
    for n in range(WARNINGS_A_SECOND + 3):
        logger.warning("without ranking %d", n)
        logger.info("more of the same")
    logger.warning("another message")
    now = 11.0
    logger.warning("without ranking %d", 99)
    lines = [line for line in objects(stderr) if line["level"] == "warning"]
    assert [line["message"] for line in lines] == [
        *(f"without ranking {n}" for n in range(WARNINGS_A_SECOND)),
        "another message",
        "without ranking 99",
    ]
    assert [line.get("dropped") for line in lines] == [None] * (WARNINGS_A_SECOND + 1) + [3]
    assert sum(line["level"] == "info" for line in objects(stderr)) == WARNINGS_A_SECOND + 3


@pytest.mark.parametrize(
    ("route", "status", "level", "expected"),
    [
        (ROUTE, 200, "info", []),
        (ROUTE, 200, "debug", ["debug"]),
        (ROUTE, 503, "info", ["warning"]),
        ("/readyz", 503, "info", []),
        ("/readyz", 503, "debug", ["debug"]),
    ],
)
def test_failures_are_logged_and_other_requests_at_debug(
    stderr: io.StringIO, route: str, status: int, level: str, expected: list[str]
) -> None:
    configure("json", level, stream=stderr)
    log_request(route, "GET", status, 3.14159, ["ranking"])
    lines = objects(stderr)
    assert [line["level"] for line in lines] == expected
    assert all((line["route"], line["status"], line["ms"]) == (route, status, 3.142) for line in lines)
