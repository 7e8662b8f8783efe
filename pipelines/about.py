"""What every measured number carries: machine, versions, date, command, code version.

Stage: all of the offline track. In: the surroundings. Out: plain values. Absent: measurements.
"""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "faiss-cpu", "lightgbm", "feast", "mlflow", "numpy", "pandas")


def now_utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_bundle_id(dataset: str, role: str) -> str:
    """Unique by its moment: <dataset>-<UTC time>-<role>."""
    return f"{dataset}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{role}"


def code_version() -> str:
    """The git commit, with "-dirty" where files differ from it; the package version where there is no git."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return version("recsys")
    return commit.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")


def about(command: str) -> dict[str, str]:
    """For reports: command, date, machine, versions."""
    return {
        "command": command,
        "date (UTC)": now_utc(),
        "code": code_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
