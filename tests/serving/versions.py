"""More versions in the registry of the small world."""

import shutil
from dataclasses import replace
from pathlib import Path

from recsys.bundle import _write_facts, read_facts
from recsys.registry import Registry

from .serving_world import ServingWorld


class Versions:
    """A registry whose champion the test moves; bundles are copies of the first one under other names."""

    def __init__(self, world: ServingWorld, registry: Registry, folder: Path) -> None:
        self._first = world.home.bundles / world.bundle_id
        self.registry, self._folder = registry, folder

    def make(self, bundle_id: str, trees_left: float = 1.0, **changes: object) -> int:
        folder = self._folder / bundle_id
        shutil.copytree(self._first, folder)
        trees = (folder / "ranker.txt").read_bytes()
        (folder / "ranker.txt").write_bytes(trees[: int(len(trees) * trees_left)])
        facts = replace(read_facts(folder), bundle_id=bundle_id, **changes)  # type: ignore[arg-type]
        _write_facts(folder, facts)
        return self.registry.register(folder).version

    def promote(self, version: int) -> int:
        self.registry.promote(version)
        return version
