"""The definitions, the configuration, and what the `feast` command sees."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recsys.columns import ITEM_STATS_VIEW, TIMESTAMP, USER_ID, USER_STATE_VIEW
from recsys.errors import ConfigError, StoreError
from recsys.feature_store import FeatureStore, FeatureStoreConfig, write_feature_tables
from recsys.feature_store.registry import open_feast
from recsys.feature_store.tables import STATE_SCHEMA, STATS_SCHEMA
from recsys.workspace import DatasetWorkspace

from .feature_worlds import REPO, T0, World, build


def registered(world: World) -> Any:
    """Feast's store as another process opens it."""
    return open_feast(world.store.config)


def test_the_definitions_say_what_the_tables_hold(planted: World) -> None:
    from feast.type_map import feast_value_type_to_pa

    views = {view.name: view for view in registered(planted).list_feature_views()}
    for name, schema in ((USER_STATE_VIEW, STATE_SCHEMA), (ITEM_STATS_VIEW, STATS_SCHEMA)):
        fields = {field.name: feast_value_type_to_pa(field.dtype.to_value_type()) for field in views[name].schema}
        held = {field.name: field.type for field in schema if field.name not in ("event_timestamp", "created")}
        assert fields == held, name
        assert pq.read_schema(planted.home.features / f"{name}.parquet").equals(schema)


def test_applying_again_changes_nothing_and_keeps_the_online_rows(planted: World) -> None:
    def changed() -> Any:
        return registered(planted).get_project(planted.store.config.project).last_updated_timestamp

    before, state = changed(), planted.store.online_state(1)
    planted.store.apply()
    assert changed() == before
    assert planted.store.online_state(1) == state


def test_a_changed_definition_reaches_whoever_opens_the_store(tmp_path: Path) -> None:
    world = build(tmp_path, [(1, 3, 4.0, T0)])
    world.store.close()
    repo = tmp_path / "repo"
    shutil.copytree(REPO, repo)
    text = (REPO / "definitions.py").read_text()
    (repo / "definitions.py").write_text(text + 'another = FeatureService(name="another", features=[item_stats])\n')
    store = FeatureStore(FeatureStoreConfig(world.home, repo))
    assert store.online_state(1) is not None
    names = sorted(service.name for service in open_feast(store.config).list_feature_services())
    assert names == ["another", "ranking", "retrieval"]
    store.close()


def test_two_processes_register_one_new_home_at_once(tmp_path: Path) -> None:
    world = build(tmp_path, [(1, 3, 4.0, T0)])
    world.store.close()
    shutil.rmtree(world.home.feast)
    program = (
        "import sys, time; from pathlib import Path; import feast\n"
        "from recsys.feature_store import FeatureStore, FeatureStoreConfig\n"
        "from recsys.workspace import DatasetWorkspace\n"
        "store = FeatureStore(FeatureStoreConfig(DatasetWorkspace(Path(sys.argv[1]), 'planted'), Path(sys.argv[2])))\n"
        "print('ready', flush=True); sys.stdin.readline(); store.apply()\n"
    )
    command = [sys.executable, "-c", program, str(world.home.root), str(REPO)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said.append(process.communicate(timeout=120)[1])
    assert [process.returncode for process in processes] == [0, 0], said
    world.store.materialize()
    assert world.store.online_state(1) is not None
    world.store.close()


def test_nothing_calls_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any) -> None:
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    world = build(tmp_path, [(1, 3, 4.0, T0)])
    world.store.historical_states([1], [T0])
    world.store.online_state(1)
    world.store.close()


def test_the_feast_command_registers_the_same(planted: World, tmp_path: Path) -> None:
    home = DatasetWorkspace(tmp_path / "cli", "cli")
    no_contexts = pd.DataFrame({USER_ID: [], TIMESTAMP: []}, dtype=np.int64)
    write_feature_tables(home, planted.histories, planted.snapshots, no_contexts)
    home.feast.mkdir()
    config = FeatureStoreConfig(home, REPO)
    done = subprocess.run(
        [sys.executable, "-c", "from feast.cli.cli import cli; cli()", "-c", str(REPO), "apply"],
        env={**os.environ, **config.variables(), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    store = FeatureStore(config)
    store.materialize()
    found = store.online_state(1)
    assert found is not None
    assert found.item_ids == (3, 1, 2, 4)
    store.close()


def test_a_configuration_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    home = DatasetWorkspace(tmp_path, "x")
    with pytest.raises(ConfigError, match="choose 'sqlite' or 'redis'"):
        FeatureStoreConfig(home, REPO, online_store="memcached")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="redis_connection together"):
        FeatureStoreConfig(home, REPO, online_store="redis")
    with pytest.raises(ConfigError, match="redis_connection together"):
        FeatureStoreConfig(home, REPO, redis_connection="localhost:6379")
    with pytest.raises(ConfigError, match=r"No feature_store.yaml"):
        FeatureStoreConfig(home, tmp_path)


def test_contexts_of_an_unknown_user_are_refused(planted: World, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="of 1 users without a row in the data, the first 77"):
        write_feature_tables(
            DatasetWorkspace(tmp_path, "x"),
            planted.histories,
            planted.snapshots,
            pd.DataFrame({USER_ID: [1, 77], TIMESTAMP: [T0, T0]}),
        )
