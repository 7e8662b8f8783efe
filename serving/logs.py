"""Log lines: one object a line for machines or one sentence a line for people, without secrets and without floods.

Stage: serving. In: log records, fields in `extra`. Out: lines on stderr. Absent: files, rotation and shipping, which
belong to whatever runs the process; and counts, which `metrics` keeps exactly while lines here are sampled.

A record is always one line of JSON, and in text one line that begins with a time; a traceback follows, indented. A
line break or a control character inside a message is escaped, so that no caller can write a line of its own making.
"""

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

from recsys.errors import ConfigError

LogFormat = Literal["json", "text"]
FORMATS = ("json", "text")
LEVELS = ("debug", "info", "warning", "error")
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds, by machines
CHATTY = ("alembic", "httpx", "feast", "faiss")  # libraries whose INFO is about themselves
HIDDEN = "[hidden]"
MOST_KINDS = 100  # kinds of warnings that are told apart

request_id: ContextVar[str] = ContextVar("request_id", default="")
log = logging.getLogger(__name__)

# What a record has without `extra`; uvicorn adds its message a second time, with colours.
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}
_NAMES = r"(?:proxy-)?authorization|x-api-key|cookie|[\w-]*(?:api[-_]?key|passw(?:or)?d|secret|token)"
_SECRET_NAME = re.compile(rf"(?i)(?:{_NAMES})$")
_SECRET_VALUE = re.compile(
    # A name, then what separates it from its value in a header, a query, JSON or a repr. It begins where a word with
    # its hyphens does: tried at every hyphen, a long word would take a time that grows with its square.
    rf"(?i)(?<![\w-])({_NAMES})\b"
    r"(['\"]?\s*[:=]\s*|['\"]\s*,\s*)"
    r"(?:b?\"[^\"]*\"|b?'[^']*'|(?:(?:bearer|basic)\s+)?[^\s'\",;&})\]]+)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
_USER_INFO = re.compile(r"((?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)


def configure(
    log_format: str = "text", level: str = "info", secrets: Iterable[str] = (), stream: TextIO | None = None
) -> None:
    """Everything that is logged from now on goes to `stream` (default: stderr) in this form. `secrets`: values to hide
    wherever they stand. Raises ConfigError for a format or level that does not exist."""
    if log_format not in FORMATS:
        raise ConfigError(f"The log format is {log_format!r}; there are {' and '.join(FORMATS)}.")
    if level not in LEVELS:
        raise ConfigError(f"The log level is {level!r}; there are {', '.join(LEVELS)}.")
    handler = logging.StreamHandler(stream or sys.stderr)
    hide = Redactor(secrets)
    handler.setFormatter(JsonLines(hide) if log_format == "json" else TextLines(hide))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class Redactor:
    """Replaces what must not stand in a log: given values, whatever follows a secret's name, and credentials in URLs.

    >>> Redactor(["k3y"])("k3y? Authorization: Bearer abcdef; redis://:pw@host/0")
    '[hidden]? Authorization: [hidden]; redis://[hidden]@host/0'
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        text = _SECRET_VALUE.sub(rf"\1\2{HIDDEN}", text)
        text = _BEARER.sub(rf"\1 {HIDDEN}", text)
        return _USER_INFO.sub(rf"\1{HIDDEN}@", text)

    def field(self, name: str, value: object) -> object:
        """The value of a field: numbers and None as they are, texts and lists of them without secrets."""
        if _SECRET_NAME.match(name):
            return HIDDEN
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple):
            return [self.field(name, each) for each in value]
        return self(str(value))


class _Lines(logging.Formatter):
    def __init__(self, hide: Redactor) -> None:
        super().__init__()
        self._hide = hide

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        """What `extra` brought, the request's id first."""
        own = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        asked = own.pop("request_id", None) or request_id.get()
        found = {"request_id": asked, **own} if asked else own
        return {name: self._hide.field(name, value) for name, value in found.items()}

    def _traceback(self, record: logging.LogRecord) -> str:
        text = self.formatException(record.exc_info) if record.exc_info else ""
        return self._hide("\n".join(filter(None, (text, record.stack_info))))


class JsonLines(_Lines):
    """One JSON object a line: time, level, logger, message, then the fields, then the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._hide(record.getMessage()),
        }
        line |= {name: value for name, value in self._fields(record).items() if name not in line}
        if traceback := self._traceback(record):
            line["traceback"] = traceback
        return json.dumps(line, default=str)  # ASCII: whatever a caller sent, a line is a line


class TextLines(_Lines):
    """Time, level, logger, message, `name=value` of the fields; a traceback below it, indented."""

    def format(self, record: logging.LogRecord) -> str:
        words = [_moment(record.created), record.levelname, f"{record.name}:", self._hide(record.getMessage())]
        words += [f"{name}={value}" for name, value in self._fields(record).items()]
        lines = [_printable(" ".join(words))]
        lines += [f"    {_printable(line)}" for line in self._traceback(record).splitlines()]
        return "\n".join(lines)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    """`text` as one line: line breaks of every kind and control characters are shown as escapes.

    >>> _printable("fine, é" + chr(10) + "2026-11-21 INFO forged")
    'fine, é\\\\n2026-11-21 INFO forged'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class RateLimited:
    """At most `per_second` lines a second for each kind of message. What was swallowed is told by the kind's next line
    in the field `swallowed`; a kind that falls no_score keeps its last count to itself, `metrics` has it.
    Thread-safe."""

    def __init__(self, per_second: int = 5, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = per_second, clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, int, int]] = {}  # kind -> (second, lines in it, swallowed since the last line)

    def __call__(
        self, logger: logging.Logger, level: int, kind: str, message: str, *args: object, **how: object
    ) -> None:
        """`how`: fields of the line, and `exc_info` as logging knows it."""
        if not logger.isEnabledFor(level):
            return
        swallowed = self._admit(kind)
        if swallowed is None:
            return
        exc_info = how.pop("exc_info", None)
        fields = {**how, "swallowed": swallowed} if swallowed else how
        logger.log(level, message, *args, exc_info=exc_info, extra=fields)  # type: ignore[arg-type]

    def _admit(self, kind: str) -> int | None:
        """None: swallow this one. Otherwise how many were swallowed since the last line of the kind."""
        with self._lock:
            if kind not in self._seen and len(self._seen) >= MOST_KINDS:
                kind = ""
            now = int(self._clock())
            second, lines, swallowed = self._seen.get(kind, (now, 0, 0))
            if second != now:
                second, lines = now, 0
            if lines >= self._most:
                self._seen[kind] = (second, lines, swallowed + 1)
                return None
            self._seen[kind] = (second, lines + 1, 0)
            return swallowed


class RequestLog:
    """A line for requests: each at DEBUG; at INFO one of `every`; a failure (5xx) always, though limited in rate.

    Probes are told at DEBUG only: one that hears "not yet" is no failure. Where nothing is written a call costs about
    a microsecond. Thread-safe: a race may move the sample by one.
    """

    def __init__(self, every: int = 100, limited: RateLimited | None = None) -> None:
        self._every, self._limited = every, limited or RateLimited()
        self._n = 0

    def __call__(self, route: str, method: str, status: int, ms: float, degraded: Sequence[str] = ()) -> None:
        """`route`: the template, not the path: what was asked for does not belong into every log."""
        probe = route in PROBES
        self._n += not probe
        sampled = not probe and (self._n % self._every == 1 or self._every == 1)
        failed = status >= 500 and not probe
        if not (sampled or failed or log.isEnabledFor(logging.DEBUG)):
            return
        fields: dict[str, object] = {"route": route, "method": method, "status": status, "ms": round(ms, 3)}
        if degraded:
            fields["degraded"] = list(degraded)
        if failed:
            self._limited(log, logging.WARNING, f"{route} {status}", "request failed", **fields)
        elif log.isEnabledFor(logging.DEBUG):
            log.debug("request", extra=fields)
        else:
            log.info("request", extra={**fields, "one_of": self._every})
