"""What a configuration says of its servers: whom it connects to, for how long, and what of it may be shown."""

from pathlib import Path

import pytest

from recsys.feature_store.config import FeatureStoreConfig, with_time_limits
from recsys.workspace import DatasetWorkspace

from .feature_worlds import REPO


def config_of(tmp_path: Path, redis: str | None = None, registry: str | None = None) -> FeatureStoreConfig:
    return FeatureStoreConfig(DatasetWorkspace(tmp_path, "x"), REPO, "redis" if redis else "sqlite", redis, registry)


@pytest.mark.parametrize(
    ("redis", "registry", "expected"),
    [
        (None, None, "sqlite"),
        ("redis:6379", None, "redis redis:6379"),
        ("username=s3cret,password=s3cret,10.0.0.7:6379,db=1,ssl=true", None, "redis 10.0.0.7:6379,db=1"),
        (None, "postgresql+psycopg://u:s3cret@db:5432/feast", "sqlite postgresql+psycopg://db:5432/feast"),
        (
            None,
            "postgresql+psycopg://u:s3:c%2Fr%3Fe%40t@[::1]:5432/f?a=b%40s3cret",
            "sqlite postgresql+psycopg://[::1]:5432/f",
        ),
        (None, "postgresql+psycopg://db/feast?user=u&password=s3%40cret", "sqlite postgresql+psycopg://db/feast"),
        (None, "s3cret", "sqlite an unknown database"),
    ],
)
def test_an_address_says_which_store_and_no_secret(
    tmp_path: Path, redis: str | None, registry: str | None, expected: str
) -> None:
    assert config_of(tmp_path, redis, registry).address == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis:6379", "redis:6379,socket_timeout=2,socket_connect_timeout=1"),
        ("redis:6379,socket_timeout=5", "redis:6379,socket_timeout=5,socket_connect_timeout=1"),
        ("socket_connect_timeout=0.5,redis:6379", "socket_connect_timeout=0.5,redis:6379,socket_timeout=2"),
    ],
)
def test_a_connection_has_time_limits_unless_it_names_its_own(given: str, expected: str) -> None:
    assert with_time_limits(given) == expected


def test_the_limits_arrive_at_the_client(tmp_path: Path) -> None:
    told = config_of(tmp_path, "127.0.0.1:1,db=3").feast_config()
    from feast.infra.online_stores.redis import RedisOnlineStore

    with RedisOnlineStore()._get_client(told.online_store) as client:
        found = client.connection_pool.connection_kwargs
        assert (found["db"], found["socket_timeout"], found["socket_connect_timeout"]) == (3, 2, 1)
    assert told.online_store.skip_dedup
