"""A training run that is killed in every stage, and started again after each kill.

Given official files of a small world and a folder, it makes two homes there, `whole` and `killed`, by the same command,
and prints a line of JSON for each kill. Each is SIGKILL at a random moment of the stage, and at the latest when the
stage has written everything but the record that it finished. A run is a process of its own, forked from this one, which
has imported and computed nothing.
"""

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipelines.stages
from pipelines import stage_runner
from pipelines.stage_runner import Stage
from pipelines.stages import stages
from recsys import command
from recsys.workspace import Workspace
from tests.conftest import use_small_settings

DATASET = "synthetic"
TRAIN = ("train", "--budget-ms", "60000")


def forked(work: Callable[[], int]) -> int:
    """The exit code of `work` in a child; -9 where it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = work()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def recsys(root: Path, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        use_small_settings(patch)
        return command.run([*arguments, "--home", str(root)])


def killed_in(root: Path, stage: str, after_s: float) -> int:
    """Train until `stage` has run for `after_s`, or has finished but for its record."""
    record = Workspace(root).dataset(DATASET).stages / f"{stage}.json"
    write = stage_runner.write_json

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_or_die(path: Path, value: Any) -> None:
        if path == record:
            die()
        write(path, value)

    def dying(whole: Stage) -> Stage:
        def run() -> None:
            timer = threading.Timer(after_s, die)
            timer.daemon = True
            timer.start()
            whole.run()

        return replace(whole, run=run) if whole.name == stage else whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_runner, "write_json", write_or_die)
        patch.setattr(pipelines.stages, "stages", lambda pipeline: [dying(each) for each in stages(pipeline)])
        return recsys(root, *TRAIN)


def main(files: Path, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    for root in (whole, killed):
        assert forked(lambda root=root: recsys(root, "data", "--data-dir", str(files), "--dataset", DATASET)) == 0  # type: ignore[misc]
    assert forked(lambda: recsys(whole, *TRAIN)) == 0
    records = Workspace(whole).dataset(DATASET).stages
    for stage, seconds in stage_runner.stage_seconds(records).items():
        after_s = rng.uniform(0.0, seconds)
        code = forked(lambda stage=stage, after_s=after_s: killed_in(killed, stage, after_s))  # type: ignore[misc]
        finished = sorted(p.stem for p in Workspace(killed).dataset(DATASET).stages.glob("*.json"))
        print(json.dumps({"stage": stage, "after_s": after_s, "code": code, "finished": finished}), flush=True)
    assert forked(lambda: recsys(killed, *TRAIN)) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
