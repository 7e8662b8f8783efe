"""A home of its own for an experiment: what serving needs of a trained home, copied, with a registry of its own.

Stage: serving (benchmark, soak). In: a trained home and the bundles that shall be registered. Out: `ServiceSettings`
of a temporary home. Absent: training; and any write to the home that it came from.

The feature store keeps absolute paths and a project named after its home, so that it is registered anew, and the
online store is filled again: wholly, or with the users that will be asked for.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recsys.feature_store import FeatureStore
from recsys.features.state import UserState
from recsys.home import Home
from recsys.registry import Registry, model_name_for
from serving.settings import ServiceSettings


@contextmanager
def temporary_home(settings: ServiceSettings) -> Iterator[ServiceSettings]:
    """The data set's tables in a folder that is gone afterwards; no feature store and no registry yet."""
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        home = Home(Path(folder)).dataset(settings.home.name)
        for place in ("data", "features"):
            shutil.copytree(getattr(settings.home, place), getattr(home, place))
        Home(Path(folder)).remember(home.name)
        store = settings.feature_store
        changed = type(store)(home=home, repo=store.repo, online_store="sqlite")
        yield settings.model_copy(
            update={
                "home": home,
                "feature_store": changed,
                "registry_folder": Home(Path(folder)).mlflow,
                "tracking_uri": None,
            }
        )


def fill_store(settings: ServiceSettings, states: Sequence[tuple[UserState, Sequence[int]]] | None = None) -> None:
    """Register the features, and put the given users' states and seen movies into the online store; everybody's where
    `states` is None, which takes seconds a thousand users and movies."""
    store = FeatureStore(settings.feature_store)
    try:
        store.apply()
        if states is None:
            store.materialize()
        for state, seen_ids in states or ():
            store.push_state(state, seen_ids, stamped=max(state.timestamps, default=1))
    finally:
        store.close()


def register(settings: ServiceSettings, bundles: Sequence[Path]) -> list[int]:
    """Register bundles in the home's registry and make the first the champion; their versions."""
    registry = registry_of(settings)
    versions = [registry.register(folder).version for folder in bundles]
    registry.promote(versions[0])
    return versions


def registry_of(settings: ServiceSettings) -> Registry:
    return Registry(settings.tracking_uri, settings.registry_folder, model_name_for(settings.home.name))
