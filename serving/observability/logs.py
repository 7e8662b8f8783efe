"""Log lines on stderr: a JSON object each for machines, or a line of text for people.

Every line carries the id of its request. Secrets are hidden, control characters are escaped so that no caller can forge
a line, and a warning that repeats is cut to a few a second.
"""

import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, TextIO

from recsys.errors import ConfigError

FORMATS: Final = ("json", "text")
LEVELS: Final = ("debug", "info", "warning", "error")
PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds, by machines
CHATTY: Final = ("alembic", "httpx", "feast", "faiss")  # libraries whose INFO is about themselves
HIDDEN: Final = "[hidden]"
WARNINGS_A_SECOND: Final = 5  # of one message

request_id: ContextVar[str] = ContextVar("request_id", default="")
log = logging.getLogger(__name__)

# What a record has without `extra`; uvicorn adds its message a second time, with colours.
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
_CREDENTIALS: Final = re.compile(r"(?i)(://)[^/\s@\"]+(?=@)|\b((?:bearer|basic)\s+)[\w.~+/=-]{6,}")


def configure(
    log_format: str = "text", level: str = "info", secrets: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """Send all log lines to `stream` (default: stderr), with `secrets` hidden wherever they stand.

    Raises ConfigError for a format or level that does not exist.
    """
    for name, given, known in (("format", log_format, FORMATS), ("level", level, LEVELS)):
        if given not in known:
            raise ConfigError(f"The log {name} is {given!r}; choose one of {', '.join(known)}.")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LineFormatter(as_json=log_format == "json", secrets=secrets))
    handler.addFilter(FloodFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class LineFormatter(logging.Formatter):
    """Time, level, logger, message, request id, the fields of `extra`, and the traceback where there is one."""

    def __init__(self, *, as_json: bool, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._as_json = as_json
        texts = {text for secret in secrets if secret for text in (secret, json.dumps(secret)[1:-1])}
        self._secrets = sorted(texts, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
        level, message = record.levelname, record.getMessage()
        if current := request_id.get():
            extra = {"request_id": current} | extra
        traceback = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            line = extra | {"time": moment, "level": level.lower(), "logger": record.name, "message": message}
            # ASCII: whatever a caller sent, a line stays a line
            return self._hide(json.dumps(line | {"traceback": traceback} if traceback else line, default=str))
        words = [moment, level, f"{record.name}:", message, *(f"{name}={value}" for name, value in extra.items())]
        lines = [" ".join(words), *(f"    {text}" for text in traceback.splitlines())]
        return "\n".join(_printable(self._hide(text)) for text in lines)

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return _CREDENTIALS.sub(rf"\1\2{HIDDEN}", text)


class FloodFilter(logging.Filter):
    """At most WARNINGS_A_SECOND warnings and errors of one message; its next line says how many were dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._seen: Counter[tuple[str, str]] = Counter()
        self._dropped: Counter[tuple[str, str]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key, now = (record.name, str(record.msg)), int(time.monotonic())
        if now != self._second:
            self._second = now
            self._seen.clear()
        self._seen[key] += 1
        if self._seen[key] > WARNINGS_A_SECOND:
            self._dropped[key] += 1
            return False
        if dropped := self._dropped.pop(key, 0):
            record.dropped = dropped
        return True


def log_request(route: str, method: str, status: int, ms: float, degraded: Sequence[str] = ()) -> None:
    """A finished request: a failure of ours (5xx) as a warning, any other, and a probe, at DEBUG.

    `route` is the template: the ids in a path do not belong in a log.
    """
    failed = status >= 500 and route not in PROBES
    level = logging.WARNING if failed else logging.DEBUG
    if log.isEnabledFor(level):
        fields = {"route": route, "method": method, "status": status, "ms": round(ms, 3), "degraded": list(degraded)}
        log.log(level, "request failed" if failed else "request", extra=fields)


def _printable(text: str) -> str:
    """`text` as one line: line breaks of every kind and control characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
