"""Bundles as far as the registry looks into one, and a registry over an empty database."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from recsys.bundle import FORMAT
from recsys.data.tables import DatasetInfo
from recsys.registry import Registry, model_name_for
from recsys.registry.backend import Backend

NAME = model_name_for("demo")
Make = Callable[..., Path]


def write_bundle(folder: Path, bundle_id: str, *, role: str = "production", ndcg: float = 0.2, **changes: Any) -> Path:
    """A bundle as far as the registry looks into one, with files in a sub-folder that it must not look into."""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "bundle_id": bundle_id,
        "dataset": asdict(DatasetInfo("demo", True, "ml-1m", "a" * 64, 9, 1, 1)),
        "trained_through": 1_000_000_000,
        "through_seq": 0,
        "role": role,
        "sibling_id": f"{bundle_id}-t2" if role == "production" else None,
        "code_version": "0.1.0+abc",
        "metrics": {
            "ndcg@10": {"mean": ndcg, "low": round(ndcg - 0.02, 4), "high": round(ndcg + 0.02, 4)},
            "retrieval_ndcg@10": {"mean": 0.1, "low": 0.09, "high": 0.11},
            "ranker_gain_ndcg@10": {"mean": 0.1, "low": 0.08, "high": 0.12},
            "latency_p99_ms": 10.0,
            "cold": {"hr@10": None},
        },
        "parameters": {"ranker": {"leaves": 31}, "seed": 7},
        "created_utc": "2026-11-21T00:00:00Z",
        "files": {},
    }
    place = folder / bundle_id
    (place / "index").mkdir(parents=True)
    (place / "bundle.json").write_text(json.dumps(manifest | changes))
    (place / "index" / "vectors.bin").write_bytes(bundle_id.encode() * 100)
    return place


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda bundle_id, **changes: write_bundle(tmp_path / "built", bundle_id, **changes)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables only: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("template")
    backend = Backend(None, folder)
    with backend.speaking("open"):
        assert backend.client is not None
    return folder / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "a home" / "mlflow"  # with a space: it becomes part of a URI
    folder.mkdir(parents=True)
    shutil.copyfile(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry(None, home, NAME)
