"""A home whose versions are bundles in name only, and prediction logs as services would have written them.

`python -m tests.pipelines.retraining.retrain_world FOLDER` kills retraining in each of its steps, runs it again, and
prints a line of JSON with the state of the registry after each run.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.retraining.run as retraining
from pipelines.pipeline import Pipeline
from pipelines.retraining import steps
from recsys.data.tables import save_tables
from recsys.evaluation.bootstrap import PairedDifference
from recsys.monitoring.prediction_log import HOUR, PER_ANSWER, PER_ITEM, predictions_folder
from recsys.registry import Registry, Step
from recsys.settings import Settings
from tests.faults.kill_training import forked
from tests.planted import planted_tables
from tests.registry.conftest import write_bundle

NOW = 1_800_000_000.0
EQUAL = PairedDifference(0.0, -0.01, 0.01, 0.5, 100, 50)
POLICY = {"shadow_hours": 0.5, "shadow_answers": 300, "canary_hours": 0.5, "canary_answers": 300, "fewest_answers": 200}


def open_home(folder: Path, lines: list[str]) -> Pipeline:
    settings = Settings(home=folder)
    home = settings.paths().dataset("demo")
    if not home.data.exists():
        save_tables(planted_tables(), home.data)
        (home.root / "retrain.json").write_text(json.dumps(POLICY))
    return Pipeline(home, settings, None, None, lines.append)  # type: ignore[arg-type]


def new_version(pipeline: Pipeline, reason: str, now: float, **bundle: Any) -> int:
    """A version that was just trained."""
    name = f"b{len(pipeline.registry.versions()) + 1}"
    folder = write_bundle(pipeline.home.root / "made", name, **bundle)
    return pipeline.registry.register(folder, tags=steps.at(steps.TRAINED, now, reason).tag).version


def answer(n: int, version: int, received: float, **values: Any) -> dict[str, Any]:
    """One shown item of one answer; user n."""
    usual = {"role": "shown", "experiment": None, "degraded": "", "total_ms": 8.0 + n % 5, "state_seq": 0}
    row = {
        "request_id": f"{version}-{n}-{received}",
        "user_id": n,
        "item_id": 900,
        "version": version,
        **usual,
        **values,
    }
    return {**row, "position": 1, "received": round(received * 1e6)}


def write_log(pipeline: Pipeline, rows: Iterable[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(list(rows), schema=pa.unify_schemas([PER_ANSWER, PER_ITEM]))
    moment = table["received"][0].as_py()
    folder = predictions_folder(pipeline.home) / moment.strftime(HOUR)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"{len(list(folder.iterdir()))}.parquet")


def quiet_hour(pipeline: Pipeline, end: float, **values: Any) -> None:
    """The last half hour before `end`: version 1 shows, version 2 is in shadow, and in canary for every second user.
    `values` are those of version 2."""
    canary = {"experiment": steps.canary_name(pipeline.registry.resolve(2))}
    rows = [answer(n, 2, end - 1_000 + n, **{"role": "shadow", **values}) for n in range(400)]
    for n in range(800):
        version = 1 + n % 2
        rows.append(answer(n, version, end - 1_000 + n, **canary, **(values if version == 2 else {})))
    write_log(pipeline, rows)


def run_at(folder: Path, now: float, killed_in: str | None) -> int:
    """`recsys retrain --once` with a training that takes no time; SIGKILL before the tag of a step is written."""
    record = Registry.record_step

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def record_or_die(self: Registry, version: int, step: Step) -> Any:
        if step.name == killed_in:
            die()
        return record(self, version, step)

    def train(pipeline: Pipeline, reason: str, _clock: Any) -> Any:
        if killed_in == steps.TRAINED:
            die()
        return pipeline.registry.resolve(new_version(pipeline, reason, now))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "record_step", record_or_die)
        patch.setattr(retraining, "train_version", train)
        patch.setattr(retraining, "open_pipeline", lambda *_, **__: open_home(folder, []))
        patch.setattr(retraining, "decide", lambda *_: ["a planted reason"])
        patch.setattr(steps, "newest_difference", lambda *_: EQUAL)
        retraining.once("demo", Settings(home=folder), clock=lambda: now)
    return 0


def main(folder: Path) -> None:
    def first() -> int:
        pipeline = open_home(folder, [])
        pipeline.registry.register(write_bundle(pipeline.home.root / "made", "b1"))
        pipeline.registry.promote(1)
        return 0

    def show(killed_in: str | None, code: int, now: float) -> int:
        pipeline = open_home(folder, [])
        registry, traffic = pipeline.registry, pipeline.registry.traffic()
        of_2 = [version for version in registry.versions() if version.version == 2]
        state = {
            "killed_in": killed_in,
            "code": code,
            "champion": registry.resolve("champion").version,
            "shadow": traffic.shadow,
            "experiment": traffic.experiment and traffic.experiment.name,
            "steps": [step.name for version in of_2 for step in version.steps],
        }
        print(json.dumps(state), flush=True)
        if of_2:
            quiet_hour(pipeline, now + 3_600)
        return 0

    assert forked(first) == 0
    for n, killed_in in enumerate(("trained", "gated", "shadow", None, "canary", None, "champion", None)):
        now = NOW + 3_600 * n
        code = forked(lambda now=now, killed_in=killed_in: run_at(folder, now, killed_in))  # type: ignore[misc]
        assert forked(lambda now=now, code=code, killed_in=killed_in: show(killed_in, code, now)) == 0  # type: ignore[misc]


def moment(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
