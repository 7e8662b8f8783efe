"""A training run killed in every stage and started again each time.

Kept: what finished stages wrote. In the end there are the same bundles as after a run that nobody disturbed, byte for
byte but for their names, moments and measured times, and the same champion.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.stage_runner import stage_seconds
from recsys.atomic_io import read_json
from recsys.bundle import load_bundle
from recsys.registry import Registry, model_name_for
from recsys.workspace import DatasetWorkspace, Workspace

from .kill_training import DATASET

ROOT = Path(__file__).resolve().parents[2]
OWN = ("bundle_id", "sibling_id", "created_utc")  # of every run


@pytest.fixture(scope="module")
def homes(
    world_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DatasetWorkspace, DatasetWorkspace, list[Any]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.faults.kill_training", str(world_files), str(folder), "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    whole, killed = (Workspace(folder / name).dataset(DATASET) for name in ("whole", "killed"))
    return whole, killed, kills


def test_every_stage_was_killed_and_none_before_it_was_lost(
    homes: tuple[DatasetWorkspace, DatasetWorkspace, list[Any]],
) -> None:
    names = list(stage_seconds(homes[0].stages))
    assert [kill["stage"] for kill in homes[2]] == names
    for place, kill in enumerate(homes[2]):
        assert kill["code"] == -9, kill
        assert kill["finished"] == sorted(names[:place])


@pytest.mark.parametrize("role", ["evaluation", "production"])
def test_the_bundles_are_the_same(homes: tuple[DatasetWorkspace, DatasetWorkspace, list[Any]], role: str) -> None:
    contents = []
    for home in homes[:2]:
        folder = home.bundles / read_json(home.work / f"{role}.json")["bundle_id"]
        load_bundle(folder)  # which checks every file against its digest
        facts = read_json(folder / "bundle.json")
        own = {name: facts.pop(name) for name in OWN}
        assert own["bundle_id"] == folder.name
        metrics = {name: value for name, value in facts.pop("metrics").items() if "latency" not in name}
        contents.append((facts, metrics))
    assert contents[0] == contents[1]
    assert len(contents[0][0]["files"]) > 10


def test_the_second_home_serves(homes: tuple[DatasetWorkspace, DatasetWorkspace, list[Any]]) -> None:
    for home in homes[:2]:
        registry = Registry(None, home.root.parent / "mlflow", model_name_for(DATASET))
        champion = registry.resolve("champion")
        assert champion.version == read_json(home.work / "registered.json")["version"]
        assert champion.bundle_id == read_json(home.work / "production.json")["bundle_id"]
