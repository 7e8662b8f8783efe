"""The definitions, the configuration, and what the `feast` command sees."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recsys.columns import ITEM_STATS_VIEW, TIMESTAMP, USER_ID, USER_SEEN_VIEW, USER_STATE_VIEW
from recsys.errors import ConfigError, StoreError
from recsys.feature_store import FeatureStore, FeatureStoreConfig, write_feature_tables
from recsys.feature_store.registration import load_definitions
from recsys.feature_store.tables import SEEN_SCHEMA, STATE_SCHEMA, STATS_SCHEMA
from recsys.features.item_stats import STATS_COLUMNS
from recsys.workspace import DatasetWorkspace

from .feature_worlds import REPO, T0, World, build


def test_the_definitions_say_what_the_tables_hold(planted: World) -> None:
    from feast.type_map import feast_value_type_to_pa

    views = {view.name: view for view in load_definitions(planted.store.config).feature_views}
    for name, schema in (
        (USER_STATE_VIEW, STATE_SCHEMA),
        (USER_SEEN_VIEW, SEEN_SCHEMA),
        (ITEM_STATS_VIEW, STATS_SCHEMA),
    ):
        declared = {f.name: feast_value_type_to_pa(f.dtype.to_value_type()) for f in views[name].schema}
        written = {field.name: field.type for field in schema if not pa.types.is_timestamp(field.type)}
        assert declared == written
        assert views[name].ttl.total_seconds() == 0
    assert set(STATS_COLUMNS) < set(STATS_SCHEMA.names)


def test_applying_again_changes_nothing_and_keeps_the_online_rows(planted: World) -> None:
    before = planted.store.online_state(1)
    assert planted.store.apply() is False
    after = planted.store.online_state(1)
    assert before is not None
    assert after is not None
    assert before[0] == after[0]


def test_a_changed_definition_is_applied_and_a_removed_one_is_removed(tmp_path: Path) -> None:
    world = build(tmp_path, [(1, 3, 4.0, T0)])
    world.store.close()
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text((REPO / "feature_store.yaml").read_text())
    text = (REPO / "definitions.py").read_text()
    (repo / "definitions.py").write_text(
        text.replace("ranking = FeatureService", "_ = FeatureService").replace("name=RANKING_SERVICE", "name='another'")
    )
    store = FeatureStore(FeatureStoreConfig(world.home, repo))
    assert store.apply() is True
    assert sorted(s.name for s in store._registered().list_feature_services()) == ["another", "retrieval"]
    assert store.apply() is False
    store.close()


def test_the_environment_is_as_it_was(planted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_FEATURES", "mine")
    monkeypatch.delenv("RECSYS_FEAST_PROJECT", raising=False)
    before = dict(os.environ)
    load_definitions(planted.store.config)
    assert dict(os.environ) == before


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
        [str(Path(sys.executable).with_name("feast")), "-c", str(REPO), "apply"],
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
    assert found[0].item_ids == (3, 1, 2, 4)
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


def test_servers_by_configuration(tmp_path: Path) -> None:
    home = DatasetWorkspace(tmp_path, "ml-1m")
    config = FeatureStoreConfig(
        home, REPO, "redis", redis_connection="redis:6379,db=1", registry_path="postgresql+psycopg://feast@db/feast"
    )
    told = config.feast_config()
    assert told.project == config.project
    assert told.project.startswith("recsys_ml_1m_")
    assert told.registry.path == "postgresql+psycopg://feast@db/feast"
    assert told.online_store.type == "redis"
    assert told.online_store.connection_string == "redis:6379,db=1,socket_timeout=2,socket_connect_timeout=1"
    assert told.online_store.skip_dedup is True
    assert told.offline_store.type == "duckdb"
    assert (config.registry_file, config.online_file) == (None, None)


def test_contexts_of_a_stranger_are_refused(planted: World, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="of 1 users without a row in the data, the first 77"):
        write_feature_tables(
            DatasetWorkspace(tmp_path, "x"),
            planted.histories,
            planted.snapshots,
            pd.DataFrame({USER_ID: [1, 77], TIMESTAMP: [T0, T0]}),
        )
