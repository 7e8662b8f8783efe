"""File systems with faults: a small disk, a folder that cannot be written. Only root may mount them.

Where nothing can be mounted the test is skipped and says so; with TESTS_SKIP_NOTHING=1 it fails.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stores.native import MISSING, REQUIRED


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """An empty disk of `size` ("1m") at a new folder; `resize` gives it more."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """The folder as it is, and nobody can write into it, root included."""
    _mount("--bind", str(folder), str(folder))
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"nothing can be mounted here: {done.stderr.strip()}"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{why}; root may ({REQUIRED}=1 asks for it)", pytrace=False)
        MISSING.append(why)
        pytest.skip(why)
