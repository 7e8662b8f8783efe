"""The load generator as a process of its own: on the service's own interpreter the two would take turns.

Stage: serving (benchmark). In: `Plan`s, or what another generator reads as JSON. Out: `Load`s, or its JSON. Absent: the
load itself (`load`, `freshness_load`, `soak_load`).
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any, Self

from recsys.errors import RecsysError
from serving.bench.load import Load, Plan


class Generator:
    """For several plans, one after the other. Starting a process for each would take the service out of the
    processor's caches right before ours is measured, and before no other generator.

    Ends with the block, however that is left; Ctrl-C reaches us alone.
    """

    def __enter__(self) -> Self:
        self._said: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def run(self, plan: Plan) -> Load:
        """Raises RecsysError where the generator fails; it is of no use afterwards."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(plan)).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._said.seek(0)
            raise _failed(self._said.read(), self._process.returncode)
        return Load(**json.loads(answer))


def generate(plan: Plan) -> Load:
    """One plan. Raises RecsysError where the generator fails."""
    with Generator() as generator:
        return generator.run(plan)


def in_own_process(module: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What `python -m module` answers in JSON. The process ends with us, however we end; Ctrl-C reaches us alone."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, said = process.communicate(json.dumps(asked).encode())
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode:
        raise _failed(said, process.returncode)
    found: dict[str, Any] = json.loads(out)
    return found


def _failed(said: bytes, code: int) -> RecsysError:
    lines = said.decode(errors="replace").strip().splitlines()
    return RecsysError(f"The load generator failed: {lines[-1] if lines else code}")
