"""From a name, a folder or an archive to the typed tables of a data set."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from pipelines import training_set
from pipelines.stage_runner import say
from recsys.atomic_io import read_json, write_json
from recsys.data.datasets import CITATION, DATASETS
from recsys.data.fetch import UnreachableError
from recsys.data.prepare import dataset_name_for, prepare
from recsys.data.synthetic import WorldSize, generate_world
from recsys.errors import ConfigError
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace

SYNTHETIC = "synthetic"
SOURCE = "source.json"  # in a data set's home: what it was made from


def obtain(
    settings: Settings,
    dataset: str | None,
    data_dir: Path | None = None,
    archive: Path | None = None,
    skip_bad_rows: bool = False,
    size: Mapping[str, int | None] | None = None,
    seed: int = 1,
) -> str:
    """Write the tables and return the data set's name. `size` and `seed` are for the synthetic world."""
    if data_dir is not None and archive is not None:
        raise ConfigError("Give --data-dir or --archive, not both.")
    files = data_dir or archive
    name = dataset or (dataset_name_for(files) if files is not None else settings.dataset)
    if name is None:
        raise ConfigError("Say which data: --dataset NAME, --data-dir FOLDER or --archive ZIP.")
    chosen = {key: n for key, n in (size or {}).items() if n is not None}
    if chosen and (name != SYNTHETIC or files is not None):
        raise ConfigError("--users, --movies and --events size the synthetic world: add --dataset synthetic.")
    root = settings.paths()
    home = root.dataset(name)
    if files is not None:
        say(CITATION)
        if dataset is None:
            _require_own_name(home, files)
    elif name == SYNTHETIC:
        world = WorldSize(**chosen)
        say(f"making a synthetic world: {world.n_users:,} users, {world.n_items:,} items, {world.n_events:,} ratings")
        generate_world(home.raw, world, seed)
        data_dir = home.raw
    elif name not in DATASETS:
        raise ConfigError(f"{name!r} is not an official data set ({', '.join(DATASETS)}, synthetic); add --data-dir.")
    official = name if name in DATASETS and (files is None or dataset is not None) else None
    info = prepare(home, data_dir=data_dir, archive=archive, dataset=official, skip_bad_rows=skip_bad_rows, report=say)
    write_json(home.root / SOURCE, {"source": name if files is None else str(files.resolve())})
    root.remember(name)
    bad = f", {info.n_quarantined:,} bad rows in {home.data / 'quarantine.csv'}" if info.n_quarantined else ""
    say(
        f"{info.label}: {info.n_events:,} events, {info.n_items:,} items, {info.n_users:,} users{bad}; "
        f"fingerprint of the files {info.fingerprint[:12]}"
    )
    with contextlib.closing(settings.event_table(home)) as table:
        say(f"waiting for the next training: {training_set.waiting(home, table):,} ratings in the event table")
    return name


def _require_own_name(home: DatasetWorkspace, source: Path) -> None:
    """Raises ConfigError where a name that nobody chose would replace the data set of another folder or archive."""
    record = home.root / SOURCE
    other = read_json(record).get("source") if record.exists() and home.data.exists() else None
    if other not in (None, str(source.resolve())):
        raise ConfigError(
            f"{home.root.parent} holds a data set {home.name!r} already, made from {other}. "
            f"Name this one with --dataset, or add --dataset {home.name} to replace the other."
        )


def obtain_if_needed(
    settings: Settings,
    dataset: str | None,
    data_dir: Path | None = None,
    archive: Path | None = None,
    skip_bad_rows: bool = False,
) -> str:
    """The name of a data set whose tables exist; fetched first where files are named or there are none yet."""
    root = settings.paths()
    name = dataset or settings.dataset
    if data_dir is None and archive is None and (name is None or root.dataset(name).data.exists()):
        chosen = root.choose(name).name
        root.remember(chosen)
        return chosen
    return obtain(settings, dataset, data_dir, archive, skip_bad_rows)


def obtain_or_synthetic(settings: Settings, dataset: str) -> str:
    """The named data set; where it cannot be reached, the synthetic world, said plainly."""
    try:
        return obtain_if_needed(settings, dataset)
    except UnreachableError as error:
        say(f"\n{error}\n\nGoing on with the SYNTHETIC world. Its numbers are not results on MovieLens.\n")
        return obtain_if_needed(settings, SYNTHETIC)
