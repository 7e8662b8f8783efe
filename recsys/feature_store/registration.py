"""Bring the registry to what `definitions.py` says.

Stage: features. In: Feast's store and a `FeatureStoreConfig`. Out: entities, views and services in the registry, and
the online tables they need; objects that the definitions no longer name are removed. Absent: data.

The definitions are run afresh each time. Feast's own loader imports them as a module, which Python keeps: a second
home in the same process would silently be registered with the first one's Parquet files.
"""

import os
import runpy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recsys.atomic_io import fingerprint_value
from recsys.feature_store.config import FeatureStoreConfig

FINGERPRINT_TAG = "definitions"
_ENVIRONMENT_LOCK = threading.Lock()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for as long as the definitions run, one home at a time, and put back what was there."""
    with _ENVIRONMENT_LOCK:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def load_definitions(config: FeatureStoreConfig) -> Any:
    """Run `definitions.py` for one home; returns Feast's RepoContents."""
    from feast import Entity, FeatureService, FeatureView, Project
    from feast.repo_contents import RepoContents

    with _environment(config.variables()):
        objects = list(runpy.run_path(str(config.repo / "definitions.py")).values())
    views = [x for x in objects if isinstance(x, FeatureView)]
    return RepoContents(
        projects=[Project(name=config.project)],
        data_sources=[view.batch_source for view in views],
        entities=[x for x in objects if isinstance(x, Entity)],
        feature_views=views,
        feature_services=[x for x in objects if isinstance(x, FeatureService)],
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        permissions=[],
    )


def fingerprint(contents: Any) -> str:
    """SHA-256 over all that the definitions say; equal for equal definitions of one home.

    Feast's own comparison calls every registered object changed: it includes moments and materialisation intervals.
    """
    views = [
        {
            "name": view.name,
            "entities": view.entities,
            "ttl": view.ttl.total_seconds(),
            "online": view.online,
            "fields": [(field.name, str(field.dtype)) for field in view.schema],
            "path": view.batch_source.path,
            "stamps": [view.batch_source.timestamp_field, view.batch_source.created_timestamp_column],
        }
        for view in contents.feature_views
    ]
    entities = [(entity.name, entity.join_key, str(entity.value_type)) for entity in contents.entities]
    services = [(x.name, [part.name for part in x.feature_view_projections]) for x in contents.feature_services]
    return fingerprint_value([views, entities, services])


def register(feast_store: Any, config: FeatureStoreConfig) -> bool:
    """Apply the definitions, unless the registry holds the same already; True where it did not.

    The fingerprint of what was applied is a tag of the project, so it cannot outlive the registry that it speaks of.
    """
    from feast.repo_operations import extract_objects_for_apply_delete

    contents = load_definitions(config)
    project = contents.projects[0]
    project.tags = {FINGERPRINT_TAG: fingerprint(contents)}
    online_there = config.online_file is None or config.online_file.exists()
    registered = {found.name: found.tags for found in feast_store.list_projects()}
    if online_there and registered.get(project.name, {}).get(FINGERPRINT_TAG) == project.tags[FINGERPRINT_TAG]:
        return False
    _, gone, _, _ = extract_objects_for_apply_delete(config.project, feast_store.registry, contents)
    everything = [
        *contents.projects,
        *contents.data_sources,
        *contents.entities,
        *contents.feature_views,
        *contents.feature_services,
    ]
    feast_store.apply(everything, objects_to_delete=gone, partial=False)
    return True
