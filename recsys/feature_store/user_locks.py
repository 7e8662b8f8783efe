"""One turn at a time for each user, whichever thread or process asks.

Stage: serving, and features where a materialisation meets a running service. In: a folder, user ids. Out: a lock held
while a state is read, moved and pushed. Absent: other machines; processes that share a home share its file system.

Users share BUCKETS locks by number. A lock is `flock` on an open file of its own, so that it holds between threads as
it does between processes, and a process that dies gives it back.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKETS = 256


class UserLocks:
    """Locks of one home. The folder and its files are made on first use; the files stay empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def held(self, *user_ids: int) -> Iterator[None]:
        """Hold the locks of some users. They are taken in one order everywhere, so that no two wait for each other;
        whoever holds some already must not ask for more."""
        handles: list[int] = []
        try:
            for bucket in _buckets(user_ids):
                handles.append(self._open(bucket))
                fcntl.flock(handles[-1], fcntl.LOCK_EX)
            yield
        finally:
            for handle in reversed(handles):
                os.close(handle)  # which gives the lock back

    def _open(self, bucket: int) -> int:
        path = self._folder / f"{bucket:03}.lock"
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o640)


def _buckets(user_ids: Iterable[int]) -> list[int]:
    return sorted({user_id % BUCKETS for user_id in user_ids})
