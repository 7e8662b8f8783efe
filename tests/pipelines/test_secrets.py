"""What a bundle and MLflow tell of the servers that a training used."""

import json
from pathlib import Path

import pytest

from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.stages import stages
from recsys.data.tables import save_tables
from recsys.registry.records import flat_parameters
from recsys.settings import Settings
from recsys.workspace import Workspace
from tests.planted import planted_tables


@pytest.fixture(autouse=True)
def tables(tmp_path: Path) -> None:
    save_tables(planted_tables(), Workspace(tmp_path).dataset("planted").data)


def opened(folder: Path, password: str, database: str = "feast") -> Pipeline:
    settings = Settings(
        home=folder,
        online_store="redis",
        redis_connection=f"redis:6379,password={password}",
        registry_path=f"postgresql+psycopg://recsys:{password}@postgres:5432/{database}",
    )
    return open_pipeline("planted", settings)


def test_no_password_of_the_environment_gets_into_a_bundle_or_mlflow(tmp_path: Path) -> None:
    parameters = opened(tmp_path, "s3cret").config.as_dict()
    assert "s3cret" not in json.dumps(parameters)
    flat = flat_parameters(parameters)
    assert flat["feature_store"] == "redis redis:6379 postgresql+psycopg://postgres:5432/feast"


def test_features_are_made_again_for_another_store_and_not_for_another_password(tmp_path: Path) -> None:
    first, second, elsewhere = (
        stages(opened(tmp_path, password, database))[0].settings
        for password, database in (("s3cret", "feast"), ("s4cret", "feast"), ("s3cret", "feast2"))
    )
    assert first == second != elsewhere
