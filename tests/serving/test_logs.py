"""Log lines: always one a record, never with a secret, few where the same thing happens often."""

import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from recsys.errors import ConfigError
from serving import logs
from serving.logs import HIDDEN, MOST_KINDS, RateLimited, Redactor, RequestLog, configure, request_id

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
    try:
        logger.warning("answered without %s", "ranking", extra={"degraded": ["ranking"], "ms": 12.5, "status": 200})
    finally:
        request_id.reset(token)
    (line,) = objects(stderr)
    assert line == {
        "time": "2026-11-18T11:06:40.125Z",
        "level": "warning",
        "logger": "serving.test",
        "message": "answered without ranking",
        "request_id": "abc-1",
        "degraded": ["ranking"],
        "ms": 12.5,
        "status": 200,
    }


def test_without_a_request_there_is_no_id_and_a_given_one_wins(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    logger.info("ready")
    token = request_id.set("of the context")
    logger.info("ready", extra={"request_id": "given"})
    request_id.reset(token)
    first, second = objects(stderr)
    assert "request_id" not in first
    assert second["request_id"] == "given"


def test_uvicorns_coloured_copy_is_left_out(stderr: io.StringIO) -> None:
    configure("text", stream=stderr)
    logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b[36mStarted"})
    assert stderr.getvalue().endswith(" INFO uvicorn.error: Started\n")


def test_a_field_cannot_replace_what_a_line_is_made_of(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    logger.info("ready", extra={"level": "forged", "logger": "forged", "time": "forged"})
    (line,) = objects(stderr)
    assert (line["level"], line["logger"]) == ("info", "serving.test")
    assert "forged" not in str(line)


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
        begun = [line for line in text.split("\n") if line and not line.startswith("    ")]
        assert len(begun) == 2
        assert "asked for x\\" in begun[0]
        assert "    Traceback (most recent call last):" in text


def test_text_is_for_people(stderr: io.StringIO) -> None:
    configure("text", stream=stderr)
    logger.info("über %d Filme", 3, extra={"status": 200})
    line = stderr.getvalue()
    assert line.endswith(" INFO serving.test: über 3 Filme status=200\n")
    assert line[:4].isdecimal()


SECRETS = [
    "Authorization: Bearer abc.def-123",
    "authorization=abc.def-123",
    "{'authorization': 'Bearer abc.def-123', 'host': 'x'}",
    "[(b'x-api-key', b'abc.def-123'), (b'host', b'x')]",
    '{"password": "abc.def-123, and more of it"}',
    "/v1/events?api_key=abc.def-123&k=1",
    "RECSYS_API_KEY=abc.def-123",
    "Bearer abc.def-123",
    "redis://user:abc.def-123@host:6379/0",
    "the key abc.def-123 alone",
]


@pytest.mark.parametrize("log_format", logs.FORMATS)
@pytest.mark.parametrize("text", SECRETS)
def test_no_secret_is_written(stderr: io.StringIO, log_format: str, text: str) -> None:
    """In a message, an argument, a field or an exception; the last of the list only because it was announced."""
    configure(log_format, secrets=["abc.def-123"] if text.endswith("alone") else [], stream=stderr)
    logger.warning(text)
    logger.warning("got %s", text)
    logger.warning("got", extra={"detail": text, "parts": [text]})
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logger.exception("failed")
    written = stderr.getvalue()
    assert "abc.def-123" not in written
    assert "and more of it" not in written
    assert written.count(HIDDEN) == 5


@pytest.mark.parametrize("name", ["authorization", "api_key", "RECSYS_API_KEY", "password", "token", "X-API-Key"])
def test_a_field_with_the_name_of_a_secret_is_hidden(stderr: io.StringIO, name: str) -> None:
    configure("json", stream=stderr)
    logger.info("start", extra={name: "abc", "port": 8000})
    (line,) = objects(stderr)
    assert line[name] == HIDDEN
    assert line["port"] == 8000


@pytest.mark.parametrize("text", ["no bearer of news", "the secret of it", "http://host/a/b@c", "80% of 3 tokens"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor(["", "k3y"])(text) == text


def test_a_longer_secret_is_not_half_hidden() -> None:
    assert Redactor(["abc", "abcdef"])("abcdef") == HIDDEN


def test_levels_and_formats_are_checked() -> None:
    with pytest.raises(ConfigError, match="'xml'; there are json and text"):
        configure("xml")
    with pytest.raises(ConfigError, match="'loud'; there are debug, info, warning, error"):
        configure("json", "loud")


def test_configuring_again_replaces(stderr: io.StringIO) -> None:
    configure("text", stream=stderr)
    configure("json", "warning", stream=stderr)
    logger.info("not this")
    logger.warning("this")
    logging.getLogger("httpx").info("nor this")
    assert [line["message"] for line in objects(stderr)] == ["this"]


def test_importing_configures_nothing() -> None:
    code = "import logging, serving.logs; print(logging.getLogger().handlers, logging.getLogger().level)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] 30\n"


# -- few lines --------------------------------------------------------------------------------------------------------


def test_a_flood_is_cut_and_counted(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    now = 10.0
    limited = RateLimited(per_second=2, clock=lambda: now)
    for n in range(5):
        limited(logger, logging.WARNING, "ranking", "without ranking %d", n, part="ranking")
    limited(logger, logging.WARNING, "retrieval", "another kind")
    now = 11.0
    limited(logger, logging.WARNING, "ranking", "without ranking %d", 5)
    limited(logger, logging.WARNING, "ranking", "without ranking %d", 6)
    lines = objects(stderr)
    assert [line["message"] for line in lines] == [
        *("without ranking 0", "without ranking 1", "another kind"),
        *("without ranking 5", "without ranking 6"),
    ]
    assert [line.get("swallowed") for line in lines] == [None, None, None, 3, None]
    assert lines[0]["part"] == "ranking"


def test_a_level_that_is_off_is_not_counted(stderr: io.StringIO) -> None:
    configure("json", "error", stream=stderr)
    limited = RateLimited(per_second=1, clock=lambda: 1.0)
    for _ in range(3):
        limited(logger, logging.WARNING, "a", "quiet")
    limited(logger, logging.ERROR, "a", "loud")
    (line,) = objects(stderr)
    assert "swallowed" not in line


def test_an_exception_comes_along(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    limited = RateLimited()
    limited(logger, logging.ERROR, "a", "failed", exc_info=ValueError("why"))
    (line,) = objects(stderr)
    assert str(line["traceback"]).endswith("ValueError: why")


def test_kinds_do_not_grow_without_end(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    limited = RateLimited(per_second=1, clock=lambda: 1.0)
    for n in range(MOST_KINDS + 50):
        limited(logger, logging.WARNING, f"kind {n}", "once")
    assert len(objects(stderr)) == MOST_KINDS + 1, "those beyond share one kind"


def test_threads_share_a_limit(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    limited = RateLimited(per_second=10, clock=lambda: 1.0)
    threads = [
        threading.Thread(target=lambda: [limited(logger, logging.WARNING, "a", "x") for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(objects(stderr)) == 10


def test_requests_are_sampled_at_info(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    write = RequestLog(every=10)
    for _ in range(25):
        write(ROUTE, "GET", 200, 3.14159, ["ranking"])
    lines = objects(stderr)
    assert len(lines) == 3
    assert {key: lines[0][key] for key in ("message", "route", "method", "status", "ms", "degraded", "one_of")} == {
        "message": "request",
        "route": ROUTE,
        "method": "GET",
        "status": 200,
        "ms": 3.142,
        "degraded": ["ranking"],
        "one_of": 10,
    }


def test_every_request_is_told_where_asked_for(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    write = RequestLog(every=1)
    write(ROUTE, "GET", 200, 1.0)
    write(ROUTE, "GET", 404, 1.0)
    configure("json", "debug", stream=stderr)
    write = RequestLog(every=1_000)
    for _ in range(3):
        write(ROUTE, "GET", 200, 1.0)
    lines = objects(stderr)
    assert [line["level"] for line in lines] == ["info", "info", "debug", "debug", "debug"]
    assert "degraded" not in lines[0]


def test_a_failure_is_always_told_but_not_in_floods(stderr: io.StringIO) -> None:
    configure("json", stream=stderr)
    write = RequestLog(every=1_000, limited=RateLimited(per_second=2, clock=lambda: 1.0))
    write(ROUTE, "GET", 200, 1.0)
    for _ in range(5):
        write(ROUTE, "GET", 500, 1.0)
    write("/v1/model", "GET", 503, 1.0)
    assert [(line["level"], line["status"]) for line in objects(stderr)] == [
        *(("info", 200), ("warning", 500), ("warning", 500), ("warning", 503)),
    ]


@pytest.mark.parametrize("route", sorted(logs.PROBES))
def test_a_probe_is_told_at_debug_only(stderr: io.StringIO, route: str) -> None:
    configure("json", stream=stderr)
    write = RequestLog(every=1)
    write(route, "GET", 200, 1.0)
    write(route, "GET", 503, 1.0)
    assert objects(stderr) == []
    configure("json", "debug", stream=stderr)
    write(route, "GET", 503, 1.0)
    assert [line["level"] for line in objects(stderr)] == ["debug"]


def test_a_request_that_is_not_told_costs_little(stderr: io.StringIO) -> None:
    """The best of several rounds: the machine may be busy, the code is not."""
    configure("json", stream=stderr)
    write = RequestLog(every=10**9)
    write(ROUTE, "GET", 200, 1.0)
    rounds = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(500):
            write(ROUTE, "GET", 200, 3.1)
        rounds.append((time.perf_counter() - started) / 500)
    assert min(rounds) < 5e-6
    assert len(objects(stderr)) == 1


@pytest.mark.parametrize("part", ["a-", "a.", "token=", "Bearer ", "x://a"])
def test_a_long_text_is_redacted_in_a_time_that_grows_with_its_length(part: str) -> None:
    """100 000 repetitions took minutes when each hyphen began the search anew."""
    started = time.perf_counter()
    Redactor(["k3y"])(part * 100_000)
    assert time.perf_counter() - started < 5.0
