"""What every measured number carries: command, date, code, machine and versions."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "faiss-cpu", "lightgbm", "feast", "mlflow", "numpy", "pandas")


def now_utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_version() -> str:
    """The git commit, with "-dirty" where files differ from it; the package version where there is no git."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return version("recsys")
    return commit.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")


def about(command: str, packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Facts of a run, in the order of `tables.FACTS_OF_A_RUN`."""
    return {
        "command": command,
        "date (UTC)": now_utc(),
        "code": code_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def command_line(words: Sequence[str]) -> str:
    """The command as it was typed, without --home: a path means nothing to the reader of a report.

    >>> command_line(["bench", "latency", "--home", "/a/b", "--quick"])
    'recsys bench latency --quick'
    """
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if before != "--home" and word.split("=")[0] != "--home"
    ]
    return shlex.join(["recsys", *kept])


def processor() -> str:
    """The processor's name; "unknown" where the system does not give one."""
    information = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)$", information.read_text() if information.exists() else "", re.MULTILINE)
    return name[1] if name else platform.processor() or "unknown"


def load_average() -> list[float]:
    """Runnable processes, mean of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]
