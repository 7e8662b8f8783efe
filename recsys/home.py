"""Where everything that a run writes has its place, below one folder.

Stage: every stage. In: the home folder and the name of a data set. Out: paths; nothing is created here.
Absent: the environment (`recsys.settings` reads it) and the contents of the files.

    HOME/
      mlflow/                     the registry's store, shared by all data sets
      <dataset>/
        data/                     events.parquet movies.parquet users.parquet source.json [quarantine.csv]
        raw/                      the official files as downloaded or generated
        features/                 Parquet tables that Feast reads
        feast/                    Feast's registry and online store
        stages/                   one JSON file a finished stage: its inputs' fingerprint, its seconds
        work/                     what stages hand to one another
        bundles/                  one folder a bundle
        reports/                  ladder, plots, pages
        events/                   the service's event log
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    root: Path

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    def dataset(self, name: str) -> "DatasetHome":
        return DatasetHome(self.root / name, name)


@dataclass(frozen=True)
class DatasetHome:
    root: Path
    name: str

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def feast(self) -> Path:
        return self.root / "feast"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def events(self) -> Path:
        return self.root / "events"
