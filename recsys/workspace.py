"""Where everything that a run writes has its place, below one folder.

Paths alone: nothing is created or read here, and `recsys.settings` reads the environment.

    HOME/
      current.json                the data set that was prepared or trained last
      mlflow/                     the registry's store, shared by all data sets
      <dataset>/
        data/                     events.parquet items.parquet users.parquet dataset.json [quarantine.csv]
        raw/                      the official files as downloaded or generated
        training_set/             the event table's ratings that the last training learnt from
        features/                 Parquet tables that Feast reads
        feast/                    Feast's registry and online store
        stages/                   one JSON file a finished stage: its inputs' fingerprint, its seconds
        work/                     what stages hand to one another
        bundles/                  one folder a bundle
        reports/                  leaderboard, plots, pages
        events.db                 the event table, unless RECSYS_EVENTS_URL names another
        predictions/              the prediction log
"""

import re
from dataclasses import dataclass
from pathlib import Path

from recsys.atomic_io import read_json, write_json
from recsys.errors import ConfigError


@dataclass(frozen=True)
class Workspace:
    root: Path

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    def dataset(self, name: str) -> "DatasetWorkspace":
        """The place of a data set. Raises ConfigError for a name that could leave the home or collide with it."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or name in ("mlflow", "current.json"):
            raise ConfigError(f"{name!r} cannot name a data set: use lower-case letters, digits, '.', '_' and '-'.")
        return DatasetWorkspace(self.root / name, name)

    def remember(self, name: str) -> None:
        """Make `name` the data set that `choose` picks when none is named."""
        write_json(self.root / "current.json", {"dataset": name})

    def choose(self, name: str | None) -> "DatasetWorkspace":
        """The named data set, or the one used last. Raises ConfigError where there is none yet."""
        if name is None:
            current = self.root / "current.json"
            if not current.exists():
                raise ConfigError(f"{self.root} holds no data set yet. Run `recsys data --dataset ml-100k` first.")
            stored = read_json(current)
            if not isinstance(stored, dict) or not isinstance(stored.get("dataset"), str):
                raise ConfigError(f"{current} names no data set. Name one with --dataset, or remove the file.")
            name = stored["dataset"]
        chosen = self.dataset(name)
        if not chosen.data.exists():
            raise ConfigError(
                f"There is no data set {name!r} in {self.root}. Run `recsys data --dataset {name}` first."
            )
        return chosen


@dataclass(unsafe_hash=True)
class DatasetWorkspace:
    """`event_file` is the event table where it is a SQLite file."""

    root: Path
    name: str

    def __post_init__(self) -> None:
        self.data = self.root / "data"
        self.raw = self.root / "raw"
        self.training_set = self.root / "training_set"
        self.features = self.root / "features"
        self.feast = self.root / "feast"
        self.stages = self.root / "stages"
        self.work = self.root / "work"
        self.bundles = self.root / "bundles"
        self.reports = self.root / "reports"
        self.event_file = self.root / "events.db"
