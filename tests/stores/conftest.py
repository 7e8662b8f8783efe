"""Servers for these tests, and one line at the end about those that were missing."""

import pytest

from .native import MISSING, postgres_server, redis_server

__all__ = ["postgres_server", "redis_server"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why in MISSING:
        terminalreporter.write_line(f"Tests on real stores were skipped: {why}", yellow=True)
