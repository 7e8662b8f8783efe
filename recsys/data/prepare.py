"""From wherever the raw files are to the three tables: the whole data stage in one function.

All of `home.data` is written or none. Synthetic files come in as `data_dir`; messages go to `report`.
"""

import hashlib
import re
import tempfile
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Final

import pandas as pd

from recsys.atomic_io import fingerprint_files
from recsys.columns import ITEM_ID, TIMESTAMP, USER_ID
from recsys.data.datasets import DATASETS, dataset_called
from recsys.data.fetch import Report, fetch_archive, fetch_official, member_path
from recsys.data.layouts import SYNTHETIC_MARK, find_layout, read_events, read_movies, read_users
from recsys.data.tables import DatasetInfo, Tables, save_tables
from recsys.data.validate import BadRows
from recsys.errors import DataError
from recsys.workspace import DatasetWorkspace

SYNTHETIC: Final = "synthetic"


def dataset_name_for(path: Path) -> str:
    """The name under which a folder or an archive is kept: its own, in lower case, of a-z, 0-9, ".", "_" and "-".

    Digits take the place of letters of another script. Files of our own making get a name that begins with "synthetic".

    >>> [dataset_name_for(Path(name)) for name in ("/data/Mes Films (2019)", "ML-1M.zip", "cinéma", "фильмы 2019")]
    ['mes-films-2019', 'ml-1m', 'cinema', '2019-1ce5df9d']
    """
    path = path if path.name not in ("", "..") else path.resolve()
    base = path.stem if path.suffix.lower() == ".zip" and not path.is_dir() else path.name
    letters = [c for c in unicodedata.normalize("NFKD", base.lower()) if not unicodedata.combining(c)]
    name = re.sub(r"[^a-z0-9._-]+", "-", "".join(letters)).strip("-._")
    if not name or any(c.isalnum() and not c.isascii() for c in letters):
        name = f"{name or 'data'}-{hashlib.sha256(base.encode(errors='surrogateescape')).hexdigest()[:8]}"
    if _is_synthetic(path) and not name.startswith(SYNTHETIC):
        return f"{SYNTHETIC}-{name}"
    return name


def _is_synthetic(path: Path) -> bool:
    if path.is_dir():
        try:
            return find_layout(path).synthetic
        except DataError:  # `prepare` says what is wrong with it
            return (path / SYNTHETIC_MARK).is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member_path(name).name == SYNTHETIC_MARK for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):  # `fetch` says what is wrong with it
        return False


def prepare(
    home: DatasetWorkspace,
    *,
    data_dir: Path | None = None,
    archive: Path | None = None,
    dataset: str | None = None,
    skip_bad_rows: bool = False,
    report: Report = lambda _: None,
) -> DatasetInfo:
    """Obtain, read, check and write one data set; what it was made from.

    `data_dir` is read where it lies; `archive` is unpacked into `home.raw`; with neither, `dataset` is downloaded
    there. `dataset` beside `archive` is the official name that its checksum must bear out.
    Raises UnreachableError when a download fails, DataError for the files.
    """
    if archive is not None:
        fetch_archive(archive, home.raw, dataset=dataset, report=report)
    elif data_dir is None and dataset is not None:
        fetch_official(dataset_called(dataset), home.raw, report=report)
    layout = find_layout(data_dir if data_dir is not None else home.raw)
    if layout.synthetic and home.name in DATASETS:
        raise DataError(f"{layout.folder} holds synthetic data, which cannot be kept under the name {home.name}.")
    # Bad rows are written out as they are found: there may be millions.
    with tempfile.TemporaryDirectory() as folder:
        quarantine = Path(folder) / "quarantine.csv"
        with quarantine.open("w", encoding="utf-8", newline="") as handle:
            bad = BadRows(handle if skip_bad_rows else None)
            movies = read_movies(layout, bad)
            listed_users = read_users(layout, bad)
            events = read_events(layout, movies[ITEM_ID], bad, now=time.time())
        if not skip_bad_rows:
            bad.raise_if_any(layout.folder)
        if events.empty:
            why = f"all its rows are bad, {bad.summary()}" if bad.count else "it is empty"
            raise DataError(f"{layout.ratings} holds no ratings: {why}.")
        everyone = pd.Index(listed_users[USER_ID]).union(pd.Index(events[USER_ID].unique()), sort=False)
        users = listed_users.set_index(USER_ID).reindex(everyone).rename_axis(USER_ID).reset_index()
        info = DatasetInfo(
            name=home.name,
            synthetic=layout.synthetic,
            layout=layout.name,
            fingerprint=fingerprint_files(layout.files),
            n_events=len(events),
            n_items=len(movies),
            n_users=len(users),
            n_quarantined=bad.count,
            last_event_at=int(events[TIMESTAMP].max()),
        )
        save_tables(Tables(events, movies, users, info), home.data, quarantine if bad.count else None)
    if bad.count:
        report(f"Left out {bad.summary()}; {home.data / 'quarantine.csv'} lists them.")
    return info
