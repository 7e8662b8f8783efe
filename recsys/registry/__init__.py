"""The model registry: bundles by version, which of them serves, and how two of them differ. MLflow is in `backend`
alone and imported when a registry is first used."""

from recsys.registry.records import Step, VersionInfo, model_name_for
from recsys.registry.store import Registry
from recsys.registry.traffic import Traffic

__all__ = ["Registry", "Step", "Traffic", "VersionInfo", "model_name_for"]
