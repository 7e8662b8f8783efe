"""Log lines: one a record, never with a secret, few where the same warning repeats."""

import io
import json
import logging
import time
from collections.abc import Iterator

import pytest

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


@pytest.mark.parametrize("log_format", logs.FORMATS)
@pytest.mark.parametrize("nasty", ["\r\n", "\x1b[2J", "\u2028", "\ud800"])
def test_nobody_forges_a_line(stderr: io.StringIO, log_format: str, nasty: str) -> None:
    configure("text" if log_format == "json" else "json", stream=io.StringIO())
    configure(log_format, stream=stderr)  # the last one counts
    logger.info(
        "asked for %s", f"x{nasty}2026-11-21 INFO forged", extra={"route": f"/{nasty}forged", "color_message": "x"}
    )
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
        info, first_line, *traceback = text.splitlines()
        assert " INFO serving.test: asked for x" in info
        assert "route=/" in info
        assert "color" not in info
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
    logger.info("no bearer of news from http://host/a/b@c")
    assert "no bearer of news from http://host/a/b@c" in stderr.getvalue(), "what is no secret stays"


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
