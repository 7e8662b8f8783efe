"""From a name, a folder or an archive to the typed tables of a data set."""

from pathlib import Path

import typer

from pipelines.status import waiting
from recsys.atomic_io import read_json, write_json
from recsys.data.datasets import CITATION, DATASETS
from recsys.data.fetch import UnreachableError
from recsys.data.prepare import dataset_name_for, prepare
from recsys.data.synthetic import WorldSize, generate_world
from recsys.data.tables import DatasetInfo
from recsys.errors import ConfigError
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace

SYNTHETIC = "synthetic"
SOURCE = "source.json"  # in a data set's home: what it was made from
Sizes = tuple[int | None, int | None, int | None]


def obtain(
    dataset: str | None,
    data_dir: Path | None,
    archive: Path | None,
    skip_bad_rows: bool,
    sizes: Sizes,
    seed: int,
    settings: Settings,
) -> str:
    """Write the tables and return the data set's name. Users, items, events of `sizes` are for the synthetic world."""
    if data_dir is not None and archive is not None:
        raise ConfigError("Give --data-dir or --archive, not both.")
    info = data_dir or archive
    name = dataset or (dataset_name_for(info) if info is not None else settings.dataset)
    if name is None:
        raise ConfigError("Say which data: --dataset NAME, --data-dir FOLDER or --archive ZIP.")
    if any(s is not None for s in sizes) and (name != SYNTHETIC or info is not None):
        raise ConfigError("--users, --movies and --events size the synthetic world: add --dataset synthetic.")
    root = settings.paths()
    home = root.dataset(name)
    if name == SYNTHETIC and info is None:
        default = WorldSize()
        users, items, events = sizes
        size = WorldSize(
            default.n_users if users is None else users,
            default.n_items if items is None else items,
            default.n_events if events is None else events,
        )
        say(f"making a synthetic world: {size.n_users:,} users, {size.n_items:,} items, {size.n_events:,} ratings")
        generate_world(home.raw, size, seed)
        data_dir = home.raw
    elif info is None and name not in DATASETS:
        raise ConfigError(f"{name!r} is not an official data set ({', '.join(DATASETS)}, synthetic); add --data-dir.")
    elif info is not None:
        say(CITATION)
        if dataset is None:
            _require_own_name(home, info)
    official = name if name in DATASETS and (info is None or dataset is not None) else None
    made = prepare(home, data_dir=data_dir, archive=archive, dataset=official, skip_bad_rows=skip_bad_rows, report=say)
    write_json(home.root / SOURCE, {"source": str(info.resolve()) if info is not None else name})
    root.remember(name)
    _say_what(made, home.data)
    say(f"waiting for the next training: {waiting(home, settings)}")
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
    dataset: str | None, data_dir: Path | None, archive: Path | None, skip_bad_rows: bool, settings: Settings
) -> str:
    """The name of a data set whose tables exist; fetched first where files are named or there are none yet."""
    root = settings.paths()
    name = dataset or settings.dataset
    nothing_named = data_dir is None and archive is None
    if nothing_named and (name is None or root.dataset(name).data.exists()):
        chosen = root.choose(name).name
        root.remember(chosen)
        return chosen
    return obtain(dataset, data_dir, archive, skip_bad_rows, (None, None, None), 1, settings)


def obtain_or_synthetic(dataset: str, settings: Settings) -> str:
    """The named data set; where it cannot be reached, the synthetic world, said plainly."""
    try:
        return obtain_if_needed(dataset, None, None, False, settings)
    except UnreachableError as error:
        say(f"\n{error}\n\nGoing on with the SYNTHETIC world. Its numbers are not results on MovieLens.\n")
        return obtain_if_needed(SYNTHETIC, None, None, False, settings)


def say(line: str) -> None:
    typer.echo(line, err=True)


def _say_what(info: DatasetInfo, folder: Path) -> None:
    skipped = f", {info.n_quarantined:,} bad rows in {folder / 'quarantine.csv'}" if info.n_quarantined else ""
    say(
        f"{info.label}: {info.n_events:,} events, {info.n_items:,} items, {info.n_users:,} users"
        f"{skipped}; fingerprint of the files {info.fingerprint[:12]}"
    )
