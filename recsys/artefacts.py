"""How anything is written: beside its place first, then renamed into it; how it is locked, and fingerprinted.

Stage: every stage. In: a path and a writer. Out: a whole file or folder, or none; a SHA-256. Absent: any
knowledge of what is written.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it into place on success, remove it on any failure.

    Readers see the old file or the new one, never a part. The parent folder is made when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a whole folder: the old one is moved aside, the new one renamed in, the old one removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        yield beside
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        try:
            beside.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked_folder(folder: Path, how: int) -> Iterator[int | None]:
    """Hold `flock` on the folder itself, against other processes and threads that do: LOCK_EX or LOCK_SH.

    Gives the folder's handle; None, and no lock, where there is no folder yet. A process that dies gives it back.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(handle, how)
        yield handle
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON with sorted keys; floats that JSON cannot say (nan, inf) are an error."""
    with replacing_file(path) as beside:
        beside.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def fingerprint_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of files, in the order of their names; hex, 64 characters."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def fingerprint_value(value: Any) -> str:
    """SHA-256 over the canonical JSON of `value`; hex, 64 characters."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
