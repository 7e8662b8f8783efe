"""How anything is written: beside its place first, then renamed into it, so that readers see all of it or nothing.
Also locks on folders, JSON, and fingerprints."""

import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recsys.errors import RESTORE, DamagedFileError

TOKEN = 16  # hexadecimal digits that tell apart those who write to one place
FORGOTTEN_S = 86_400.0  # nobody writes to a file that long without changing it


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it into place on success, remove it on any failure.

    The parent folder is made when missing. What a killed writer has left is removed once it is FORGOTTEN_S old.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _beside(path, "part"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > FORGOTTEN_S:
                left.unlink()
    beside = _new_name(path, "part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a whole folder: the old one is moved aside, the new one renamed in, the old one removed.

    A writer holds locks on what it makes and on what it moves aside; what can be locked was left by one that was
    killed. The next one clears it away, and puts back an old folder that is the only one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in [*_beside(path, "old"), *_beside(path, "part")]:
        with suppress(BlockingIOError), locked_folder(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if left.suffix == ".old" and left.exists() and not path.exists():
                left.rename(path)
            elif any(left.glob("*")):  # an empty one may have been made just now, and not be locked yet
                shutil.rmtree(left, ignore_errors=True)
    beside, old = _new_name(path, "part"), _new_name(path, "old")
    beside.mkdir()
    try:
        with locked_folder(beside, fcntl.LOCK_EX):
            yield beside
            with locked_folder(path, fcntl.LOCK_EX):  # the old one, also under its other name
                if path.exists():
                    path.rename(old)
                try:
                    beside.rename(path)
                except BaseException:
                    if old.exists():
                        old.rename(path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _new_name(path: Path, ending: str) -> Path:
    """A process id would not do: in each of two containers that share a volume it may be 1."""
    return path.with_name(f".{path.name}.{secrets.token_hex(TOKEN // 2)}.{ending}")


def _beside(path: Path, ending: str) -> list[Path]:
    """All that have such a name."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * TOKEN}.{ending}"))


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
    """Raises DamagedFileError for a file that is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: {error}. {RESTORE}") from error


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
