"""The data stage as a whole: exact tables, names, quarantine, and nothing half-written."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from recsys.data import prepare as stage
from recsys.data.datasets import DATASETS, Dataset
from recsys.data.prepare import dataset_name_for, prepare
from recsys.data.tables import load_tables
from recsys.errors import DataError
from recsys.workspace import DatasetWorkspace, Workspace

from .raw_files import LAYOUTS, ML_1M_FILES, ML_100K_FILES, write_files, write_zip

BAD = {**ML_1M_FILES, "ratings.dat": b"1::10::3.5::3\n1::10::4::2\n2::99::4::1\nend\n7::12::4::1\n"}


@pytest.fixture
def home(tmp_path: Path) -> DatasetWorkspace:
    return Workspace(tmp_path / "home").dataset("mine")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_tables_are_sorted_typed_and_complete(tmp_path: Path, home: DatasetWorkspace) -> None:
    files = {**ML_100K_FILES, "u.data": ML_100K_FILES["u.data"] + b"77\t1\t2\t880000000\n"}
    source = prepare(home, data_dir=write_files(tmp_path / "in", files))
    assert (source.name, source.layout, source.synthetic, source.label) == ("mine", "ml-100k", False, "mine")
    assert (source.n_events, source.n_items, source.n_users, source.n_quarantined) == (4, 3, 4, 0)
    tables = load_tables(home.data)
    assert tables.info == source
    assert list(tables.events.itertuples(index=False, name=None)) == [
        (1, 2, 3.0, 880000000),
        (77, 1, 2.0, 880000000),
        (2, 3, 1.0, 880000001),
        (1, 1, 5.0, 880000002),
    ]
    assert tables.items["item_id"].tolist() == [1, 2, 3]
    assert [None if pd.isna(year) else int(year) for year in tables.items["year"]] == [1995, None, 1997]
    # User 9 rated nothing and stays; user 77 is not in u.user and is there with nulls.
    assert tables.users["user_id"].tolist() == [1, 2, 9, 77]
    assert [None if pd.isna(age) else int(age) for age in tables.users["age"]] == [24, 53, 33, None]
    assert tables.users["occupation"].tolist()[:3] == ["technician", "other", "writer"]
    assert tables.users["occupation"].isna().tolist() == tables.users["gender"].isna().tolist() == [False] * 3 + [True]
    assert names(home.data) == ["dataset.json", "events.parquet", "items.parquet", "users.parquet"]


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_archive_and_folder_give_the_same_tables(tmp_path: Path, name: str) -> None:
    home = Workspace(tmp_path / "home")
    from_folder = prepare(home.dataset("a"), data_dir=write_files(tmp_path / "in", LAYOUTS[name]))
    from_zip = prepare(home.dataset("b"), archive=write_zip(tmp_path / "in.zip", LAYOUTS[name]))
    assert from_folder.fingerprint == from_zip.fingerprint
    assert from_folder.layout == from_zip.layout == name
    a, b = (load_tables(home.dataset(which).data) for which in "ab")
    pd.testing.assert_frame_equal(a.events, b.events)
    pd.testing.assert_frame_equal(a.users, b.users)
    assert names(home.dataset("b").root) == ["data", "raw"]
    last = list(LAYOUTS[name])[-1]
    (tmp_path / "in" / last).write_bytes(LAYOUTS[name][last] + b"\n")
    assert prepare(home.dataset("a"), data_dir=tmp_path / "in").fingerprint != from_folder.fingerprint


def test_bad_rows_stop_the_stage_and_leave_the_last_tables(tmp_path: Path, home: DatasetWorkspace) -> None:
    before = prepare(home, data_dir=write_files(tmp_path / "in", ML_1M_FILES))
    write_files(tmp_path / "in", BAD)
    with pytest.raises(DataError, match=r"has 3 bad rows \(1 unknown movie, 1 broken line, 1 duplicate\)") as caught:
        prepare(home, data_dir=tmp_path / "in")
    assert "ratings.dat line 2: duplicate: user 1 rated movie 10 on line 1 already" in str(caught.value)
    assert load_tables(home.data).info == before
    assert names(home.root) == ["data"]


def test_skipped_rows_are_in_the_quarantine(tmp_path: Path, home: DatasetWorkspace) -> None:
    told: list[str] = []
    source = prepare(home, data_dir=write_files(tmp_path / "in", BAD), skip_bad_rows=True, report=told.append)
    assert (source.n_events, source.n_users, source.n_quarantined) == (2, 3, 3)
    with (home.data / "quarantine.csv").open(newline="") as handle:
        assert list(csv.reader(handle)) == [
            ["file", "line", "reason", "text"],
            ["ratings.dat", "3", "unknown movie: 99 is not in movies.dat", "2::99::4::1"],
            ["ratings.dat", "4", "broken line: 1 fields instead of 4", "end"],
            ["ratings.dat", "2", "duplicate: user 1 rated movie 10 on line 1 already", "1::10::4::2"],
        ]
    assert told == [
        f"Left out 3 bad rows (1 unknown movie, 1 broken line, 1 duplicate); {home.data}/quarantine.csv lists them."
    ]
    # The next good run leaves none behind.
    prepare(home, data_dir=write_files(tmp_path / "in", ML_1M_FILES), skip_bad_rows=True)
    assert "quarantine.csv" not in names(home.data)


@pytest.mark.parametrize(
    ("name", "ratings", "words"),
    [
        ("ml-100k", b"", "it is empty"),
        ("ml-latest", b"userId,movieId,rating,timestamp\n", "it is empty"),
        ("ml-latest", b"", "it is empty"),
        ("ml-1m", b"1::10::9::1\nx\n", r"all its rows are bad, 2 bad rows \(1 bad rating, 1 broken line\)"),
    ],
)
def test_no_good_ratings(tmp_path: Path, home: DatasetWorkspace, name: str, ratings: bytes, words: str) -> None:
    file = next(iter(LAYOUTS[name]))
    folder = write_files(tmp_path / "in", {**LAYOUTS[name], file: ratings})
    with pytest.raises(DataError, match=f"{file} holds no ratings: {words}"):
        prepare(home, data_dir=folder, skip_bad_rows=True)
    assert names(home.root) == []


def test_synthetic_files_never_pass_for_movielens(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "ml-1m", {**ML_1M_FILES, "SYNTHETIC.json": b"{}"})
    name = dataset_name_for(folder)
    assert name == "synthetic-ml-1m"
    source = prepare(Workspace(tmp_path / "home").dataset(name), data_dir=folder)
    assert source.synthetic
    assert source.label == "synthetic-ml-1m (synthetic, not MovieLens)"
    with pytest.raises(DataError, match="cannot be kept under the name ml-1m"):
        prepare(Workspace(tmp_path / "home").dataset("ml-1m"), data_dir=folder)
    archive = write_zip(tmp_path / "ml-1m.zip", {**ML_1M_FILES, "SYNTHETIC.json": b"{}"})
    assert dataset_name_for(archive) == name
    assert prepare(Workspace(tmp_path / "home").dataset(name), archive=archive).synthetic


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset_name_for(Path("/data/ML-Latest_small v1.0!")) == "ml-latest_small-v1.0"
    assert dataset_name_for(Path("/data/ML-1M.ZIP")) == "ml-1m"
    assert dataset_name_for(Path("/data/???")).startswith("data-")
    assert dataset_name_for(Path("/data/фильмы")) != dataset_name_for(Path("/data/映画"))
    for name in ("synthetic-7", "Other"):
        write_files(tmp_path / name, {"SYNTHETIC.json": b"{}"})
    assert dataset_name_for(tmp_path / "synthetic-7") == "synthetic-7"
    assert dataset_name_for(tmp_path / "Other") == "synthetic-other"
    assert dataset_name_for(tmp_path / "Other" / "..") == tmp_path.name.lower()
    monkeypatch.chdir(tmp_path / "Other")
    assert dataset_name_for(Path()) == "synthetic-other"
    (tmp_path / "a.zip").write_bytes(b"none")
    assert dataset_name_for(tmp_path / "a.zip") == "a"


def test_an_official_name_is_downloaded(home: DatasetWorkspace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Dataset] = []

    def fake(dataset: Dataset, raw: Path, **_: object) -> None:
        asked.append(dataset)
        write_files(raw / "ml-1m", ML_1M_FILES)

    monkeypatch.setattr(stage, "fetch_official", fake)
    assert prepare(home, dataset="ml-1m").n_events == 2
    assert asked == [DATASETS["ml-1m"]]
