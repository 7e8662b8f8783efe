"""The console command: help that teaches, and for each bad input a message and exit code 2, never a traceback."""

import csv
import errno
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pandas as pd
import pytest
import typer

from recsys import command
from tests.conftest import TrainedHome
from tests.mounts import read_only

RATINGS = [f"{user}::{item}::{1 + (user + item) % 5}::{1_000_000_000 + 100 * user + item}" for user in range(1, 6)
           for item in range(1, 6)]  # fmt: skip
ITEMS = [f"{item}::Film {item} (199{item})::Drama" for item in range(1, 6)]
Write = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("small_settings")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a folder in ml-1m's layout."""

    def files(ratings: list[str] = RATINGS, items: list[str] = ITEMS, name: str = "files") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "ratings.dat").write_text("".join(f"{line}\n" for line in ratings))
        (folder / "movies.dat").write_text("".join(f"{line}\n" for line in items))
        return folder

    return files


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command says on stderr as it ends with exit code 2."""
    capsys.readouterr()
    code = command.run([str(a) for a in arguments])
    said = capsys.readouterr()
    assert code == 2, said
    assert "Traceback" not in said.err + said.out
    assert said.err.strip()
    return said.err


def plain(text: str) -> str:
    """Without the frame that usage errors stand in, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", text))


def commands(found: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, found
    for name, part in getattr(found, "commands", {}).items():
        yield from commands(part, (*path, name))


ALL = dict(commands(typer.main.get_command(command.build())))


def test_the_commands_are_those_of_the_design_in_the_order_of_use() -> None:
    top = [path[0] for path in ALL if len(path) == 1]
    assert top == [
        *("quickstart", "data", "status", "train", "evaluate", "recommend", "batch", "serve"),
        *("protocol", "diversity", "ablate", "tune", "keep", "skew"),
        *("bench", "logs", "models"),
    ]
    assert {path for path in ALL if path[:1] == ("models",)} == {
        ("models",),
        *(("models", name) for name in ("list", "compare", "promote", "rollback")),
    }


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(("recsys", *path)))
def test_help_names_every_option_and_teaches(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    assert command.run([*path, "--help"]) == 0
    shown = plain(capsys.readouterr().out)
    found = ALL[path]
    for parameter in found.params:
        text = getattr(parameter, "help", None)
        names = [o for o in parameter.opts if o.startswith("--")] or [parameter.name]
        assert all(re.search(rf"{name}\b", shown, re.IGNORECASE) for name in names), names
        assert text, f"{parameter.name} has no help"
    for name, part in getattr(found, "commands", {}).items():
        assert name in shown
        assert part.help, name
    if path in [(name,) for name in ("data", "train", "evaluate", "recommend", "batch", "serve")]:
        assert f"recsys {path[0]}" in (found.help or ""), "an example"
    assert len((found.help or "").split()) >= 6, "help of a few words teaches nothing"


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run([]) == 2
    said = " ".join(plain("".join(capsys.readouterr())).split())
    assert re.search(r"In order: data, train, .* Studies: protocol, diversity, ablate, tune;", said), said


def test_the_console_script_itself() -> None:
    script = Path(sys.executable).with_name("recsys")
    done = subprocess.run([script, "data", "--dataset", "no such"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("recsys: 'no such' cannot name a data set")
    assert "Traceback" not in done.stderr


def test_help_loads_no_heavy_library() -> None:
    heavy = "('torch', 'feast', 'mlflow', 'pandas', 'numpy', 'numba', 'faiss', 'lightgbm')"
    code = (
        "import sys; from recsys import command; command.run(['train', '--help']); "
        f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3::3::5.5::1000000303", "bad rating: 5.5 is not one of"),
        ("3::3::0::1000000303", "bad rating: 0 is not one of"),
        ("3::3::good::1000000303", "bad rating: 'good' is not a number"),
        ("3::99::4::1000000303", "unknown movie: 99 is not in movies.dat"),
        ("3::3::4", "broken line: 3 fields instead of 4"),
        ("3::3::4::yesterday", "bad timestamp: 'yesterday'"),
        ("3::3::4::1000000303000", "future timestamp: 1000000303000 seconds since 1970 are yet to come; as"),
        ("1::1::4::1000000303", "duplicate: user 1 rated movie 1 on line 1 already"),
    ],
)
def test_bad_rows_are_named_or_put_aside(
    line: str, reason: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write([*RATINGS[:12], line, *RATINGS[13:]])
    home = tmp_path / "home"
    said = refused(capsys, "data", "--data-dir", folder, "--home", home)
    assert f"ratings.dat line 13: {reason}" in said
    assert "--skip-bad-rows" in said
    assert not home.exists() or not list(home.rglob("*.parquet"))

    assert command.run(["data", "--data-dir", str(folder), "--skip-bad-rows", "--home", str(home)]) == 0
    quarantine = home / "files" / "data" / "quarantine.csv"
    assert str(quarantine) in capsys.readouterr().err
    with quarantine.open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [(r["file"], r["line"], r["text"]) for r in rows] == [("ratings.dat", "13", line)]
    assert reason in rows[0]["reason"]
    assert len(pd.read_parquet(home / "files" / "data" / "events.parquet")) == len(RATINGS) - 1


def test_a_name_that_nobody_chose_replaces_no_other_data_set(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    for name in ("фильмы", "映画"):
        assert command.run(["data", "--data-dir", str(write(name=name)), "--home", str(home)]) == 0
    assert len(list(home.glob("*/data"))) == 2
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = write(name="a/films"), write(RATINGS[:20], name="b/films")
    for _ in range(2):
        assert command.run(["data", "--data-dir", str(first), "--home", str(home)]) == 0
    said = refused(capsys, "data", "--data-dir", second, "--home", home)
    assert f"holds a data set 'films' already, made from {first}" in said
    assert len(pd.read_parquet(home / "films" / "data" / "events.parquet")) == len(RATINGS)
    assert command.run(["data", "--data-dir", str(second), "--dataset", "films", "--home", str(home)]) == 0
    assert len(pd.read_parquet(home / "films" / "data" / "events.parquet")) == 20


def test_an_empty_file(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "data", "--data-dir", write([]), "--home", tmp_path / "home")
    assert "ratings.dat holds no ratings: it is empty" in said
    said = refused(capsys, "data", "--data-dir", write(RATINGS, [], "other"), "--home", tmp_path / "home")
    assert "unknown movie: 1 is not in movies.dat" in said


def archive_of(folder: Path, inside: str = "ml") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"{inside}/{file.name}")
    return path


@pytest.mark.parametrize("name", ["data", "train"])
def test_which_data_is_said_once(name: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, folder = tmp_path / "home", write()
    both = ("--data-dir", folder, "--archive", archive_of(folder))
    assert "not both" in refused(capsys, name, *both, "--home", home)
    said = refused(capsys, name, "--dataset", "ml-7m", "--home", home)
    assert "'ml-7m'" in said
    assert "ml-100k" in said
    assert "does not exist" in refused(capsys, name, "--data-dir", tmp_path / "nowhere", "--home", home)
    assert "is no folder. Give an archive with --archive" in refused(
        capsys, name, "--data-dir", folder.with_suffix(".zip"), "--home", home
    )
    (tmp_path / "hollow").mkdir()
    assert "holds no MovieLens data" in refused(capsys, name, "--data-dir", tmp_path / "hollow", "--home", home)
    assert "cannot name a data set" in refused(capsys, name, "--dataset", "../up", "--home", home)
    assert not home.exists()


def test_data_needs_a_retriever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--dataset NAME, --data-dir FOLDER or --archive ZIP" in refused(capsys, "data", "--home", tmp_path)
    assert "holds no data set yet. Run `recsys data" in refused(capsys, "train", "--home", tmp_path)


def test_sizes_are_for_the_synthetic_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["data", "--home", tmp_path / "home"]
    for size in ("--users", "--movies", "--events"):
        assert "add --dataset synthetic" in refused(capsys, *asked, "--dataset", "ml-100k", size, "50")
        assert "add --dataset synthetic" in refused(capsys, *asked, "--data-dir", tmp_path, size, "50")
    assert "n_users is 0" in refused(capsys, *asked, "--dataset", "synthetic", "--users", "0")
    assert "n_items is 3" in refused(capsys, *asked, "--dataset", "synthetic", "--movies", "3")
    assert "n_events is 10" in refused(capsys, *asked, "--dataset", "synthetic", "--events", "10")
    assert "seed is -1" in refused(capsys, *asked, "--dataset", "synthetic", "--seed", "-1")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate",),
        ("recommend", "--user", "1"),
        ("batch", "--out", "lists.parquet"),
        ("serve", "--port", "0"),
        ("bench", "latency"),
        ("models", "promote", "challenger"),
        ("models", "compare", "1", "2"),
        ("models", "rollback"),
    ],
    ids=" ".join,
)
def test_commands_that_come_too_early(
    arguments: tuple[str, ...],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    said = refused(capsys, *arguments, "--home", home)
    assert "holds no data set yet. Run `recsys data" in said
    assert command.run(["data", "--data-dir", str(write()), "--home", str(home)]) == 0
    said = refused(capsys, *arguments, "--home", home)
    assert re.search(r"[Tt]rain|no champion|Promote", said), said
    assert not (tmp_path / "lists.parquet").exists()


def test_listing_models_before_training_is_no_error(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(tmp_path / "home")
    assert command.run(["data", "--data-dir", str(write()), "--home", home]) == 0
    assert command.run(["models", "list", "--home", home]) == 0
    assert "recsys-files has no version yet. Run `recsys train`." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("recommend", "--user", "1", "--k", "0"), "greater than or equal to 1"),
        (("batch", "--out", "x.parquet", "--k", "0"), "greater than or equal to 1"),
        (("train", "--epochs", "0"), "greater than or equal to 1"),
        (("train", "--budget-ms", "-1"), "greater than or equal to 0.001"),
        (("train", "--index", "magic"), "'magic' is not one of 'auto', 'exact', 'ivf'"),
        (("train", "--device", "abacus"), "'abacus' is not one of 'cpu', 'cuda'"),
        (("recommend",), "Missing option '--user'"),
        (("batch", "--out", "."), "file '.' is a directory"),
        (("evaluate", "--dump", "."), "file '.' is a directory"),
        (("batch",), "Missing option '--out'"),
        (("recommend", "--user", "somebody"), "should be a valid integer"),
        (("train", "--no-such-option"), "No such option: --no-such-option"),
        (("foretell",), "No such command 'foretell'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_out_of_range(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in plain(refused(capsys, *arguments))


def test_a_home_that_cannot_be_written(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write()
    (tmp_path / "file").write_text("not a folder")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        for retriever in (("--data-dir", folder), ("--dataset", "synthetic", "--users", "5", "--events", "100")):
            said = refused(capsys, "data", *retriever, "--home", home)
            assert f"recsys: {tmp_path / 'file'}" in said
            assert "Name a place that can be read and written" in said
    assert (tmp_path / "file").read_text() == "not a folder"

    def no_folder(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", no_folder)
    said = refused(capsys, "data", "--data-dir", folder, "--home", tmp_path / "locked")
    assert "locked" in said
    assert "Permission denied" in said


def test_a_programmers_mistake_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "forgotten")

    monkeypatch.setattr("pipelines.obtain.obtain", forgotten)
    with pytest.raises(FileNotFoundError):
        command.run(["data", "--dataset", "synthetic", "--home", str(tmp_path)])


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.obtain.obtain", interrupted)
    assert command.run(["data", "--dataset", "synthetic", "--home", str(tmp_path)]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_questions_without_an_answer(trained_home: TrainedHome, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--home", trained_home.root)
    at_7 = refused(capsys, "models", "promote", "7", *at)
    assert "has no version 7. It has 1 (champion). Name one of them; `recsys train --seed 8` makes another." in at_7
    assert "has no version called 'grand-champion'" in refused(capsys, "models", "promote", "grand-champion", *at)
    assert "has no version 2" in refused(capsys, "models", "compare", "1", "2", *at)
    assert "no earlier champion to roll back to" in refused(capsys, "models", "rollback", *at)
    said = refused(capsys, "train", "--only", "polish", *at)
    assert "There is no stage 'polish'; the stages are features, " in said
    assert "There is no data set 'ml-1m'" in refused(capsys, "recommend", "--user", "1", "--dataset", "ml-1m", *at)


def test_a_read_only_home_is_read(trained_home: TrainedHome, tmp_path: Path) -> None:
    home = Path(shutil.copytree(trained_home.root, tmp_path / "home"))
    out = tmp_path / "lists.parquet"
    with read_only(home):
        for asked in (["models", "list"], ["recommend", "--user", "1"], ["batch", "--k", "1", "--out", str(out)]):
            assert command.run([*asked, "--home", str(home)]) == 0
    assert len(pd.read_parquet(out)) > 0
