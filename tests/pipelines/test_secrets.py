"""What a bundle and MLflow tell of the servers that a training used.

Stage: tests. Absent: the form of an address (`tests.feature_store.test_config`), and a training with servers
(`tests.stores`).
"""

import json
from dataclasses import asdict
from pathlib import Path

from pipelines.bundles import bundle_facts
from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.stages import stages
from recsys.data.tables import save_tables
from recsys.registry.records import flat_parameters
from recsys.settings import Settings
from recsys.workspace import Workspace
from tests.planted import planted_tables


def opened(folder: Path, password: str, database: str = "feast") -> Pipeline:
    settings = Settings(
        home=folder,
        online_store="redis",
        redis_connection=f"redis:6379,password={password}",
        registry_path=f"postgresql+psycopg://recsys:{password}@postgres:5432/{database}",
    )
    return open_pipeline("planted", settings)


def test_no_password_of_the_environment_gets_into_a_bundle_or_mlflow(tmp_path: Path) -> None:
    save_tables(planted_tables(), Workspace(tmp_path).dataset("planted").data)
    made = opened(tmp_path, "s3cret")
    facts = bundle_facts(made.data, made.config, "planted-1", "evaluation", 0)
    assert "s3cret" not in json.dumps(asdict(facts))
    told = flat_parameters(facts.parameters)
    assert told["feature_store"] == "redis redis:6379 postgresql+psycopg://postgres:5432/feast"
    assert "s3cret" not in "".join(told.values())


def test_features_are_made_again_for_another_store_and_not_for_another_password(tmp_path: Path) -> None:
    save_tables(planted_tables(), Workspace(tmp_path).dataset("planted").data)
    first, second, elsewhere = (
        stages(opened(tmp_path, password, database))[0].settings
        for password, database in (("s3cret", "feast"), ("s4cret", "feast"), ("s3cret", "feast2"))
    )
    assert first == second != elsewhere
