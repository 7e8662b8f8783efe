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
    shown = capsys.readouterr()
    assert code == 2, shown
    assert "Traceback" not in shown.err + shown.out
    assert shown.err.strip()
    return shown.err


def plain(text: str) -> str:
    """Without the frame that usage errors stand in, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", text))


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    for name, part in getattr(group, "commands", {}).items():
        yield from commands(part, (*path, name))


ALL = dict(commands(typer.main.get_command(command.build())))


def test_the_commands_come_in_the_order_of_use() -> None:
    assert tuple(path[0] for path in ALL if len(path) == 1) == command.ORDER
    assert {path[1] for path in ALL if path[:1] == ("models",) and path[1:]} == {
        "list",
        "compare",
        "promote",
        "rollback",
    }


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(("recsys", *path)))
def test_help_names_every_option_and_teaches(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    assert command.run([*path, "--help"]) == 0
    shown = plain(capsys.readouterr().out)
    for parameter in ALL[path].params:
        names = [o for o in parameter.opts if o.startswith("--")] or [parameter.name]
        assert all(re.search(rf"{name}\b", shown, re.IGNORECASE) for name in names), names
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"
    assert all(name in shown for name in getattr(ALL[path], "commands", {}))
    assert len((ALL[path].help or "").split()) >= 6, "help of a few words teaches nothing"


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run([]) == 2
    assert "In order: data, train, " in plain("".join(capsys.readouterr()))


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
        ("3::3::5.5::1000000303", "bad rating: '5.5' is not one of"),
        ("3::99::4::1000000303", "unknown movie: 99 is not in movies.dat"),
        ("3::3::4", "broken line: 3 fields instead of 4"),
        ("3::3::4::1000000303000", "future timestamp: 1000000303000 seconds since 1970 are yet to come; as"),
        ("1::1::4::1000000303", "duplicate: user 1 rated movie 1 on line 1 already"),
    ],
)
def test_bad_rows_are_named_or_put_aside(
    line: str, reason: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write([*RATINGS[:12], line, *RATINGS[13:]])
    home = tmp_path / "home"
    shown = refused(capsys, "data", "--data-dir", folder, "--home", home)
    assert f"ratings.dat line 13: {reason}" in shown
    assert "--skip-bad-rows" in shown
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
    shown = refused(capsys, "data", "--data-dir", second, "--home", home)
    assert f"holds a data set 'films' already, made from {first}" in shown
    assert command.run(["data", "--data-dir", str(second), "--dataset", "films", "--home", str(home)]) == 0
    assert len(pd.read_parquet(home / "films" / "data" / "events.parquet")) == 20


@pytest.mark.parametrize("name", ["data", "train"])
def test_which_data_is_said_once(name: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, folder, hollow = tmp_path / "home", write(), tmp_path / "hollow"
    hollow.mkdir()
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(folder / "ratings.dat", "ml/ratings.dat")
    for arguments, reason in (
        (("--data-dir", folder, "--archive", archive), "not both"),
        (("--dataset", "ml-7m"), "'ml-7m'"),
        (("--data-dir", tmp_path / "nowhere"), "does not exist"),
        (("--data-dir", archive), "is no folder. Give an archive with --archive"),
        (("--data-dir", hollow), "holds no MovieLens data"),
        (("--dataset", "../up"), "cannot name a data set"),
    ):
        assert reason in refused(capsys, name, *arguments, "--home", home)
    assert not home.exists()


def test_data_that_are_missing_or_empty(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--home", tmp_path / "home")
    assert "--dataset NAME, --data-dir FOLDER or --archive ZIP" in refused(capsys, "data", *at)
    assert "holds no data set yet. Run `recsys data" in refused(capsys, "train", *at)
    assert "ratings.dat holds no ratings: it is empty" in refused(capsys, "data", "--data-dir", write([]), *at)


def test_sizes_are_for_the_synthetic_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data", "--home", tmp_path / "home"]
    assert "add --dataset synthetic" in refused(capsys, *data, "--dataset", "ml-100k", "--users", "50")
    assert "add --dataset synthetic" in refused(capsys, *data, "--data-dir", tmp_path, "--events", "50")
    assert "n_users is 0" in refused(capsys, *data, "--dataset", "synthetic", "--users", "0")
    assert "seed is -1" in refused(capsys, *data, "--dataset", "synthetic", "--seed", "-1")
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
    assert "holds no data set yet. Run `recsys data" in refused(capsys, *arguments, "--home", home)
    assert command.run(["data", "--data-dir", str(write()), "--home", str(home)]) == 0
    assert re.search(r"[Tt]rain|no champion|Promote", refused(capsys, *arguments, "--home", home))
    assert not (tmp_path / "lists.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recommend", "--user", "1", "--k", "0"), "greater than or equal to 1"),
        (("train", "--budget-ms", "-1"), "greater than or equal to 0.001"),
        (("train", "--index", "magic"), "'magic' is not one of 'auto', 'exact', 'ivf'"),
        (("recommend",), "Missing option '--user'"),
        (("batch", "--out", "."), "file '.' is a directory"),
        (("recommend", "--user", "somebody"), "should be a valid integer"),
        (("train", "--no-such-option"), "No such option: --no-such-option"),
        (("foretell",), "No such command 'foretell'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_out_of_range(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in plain(refused(capsys, *arguments))


def test_a_home_that_cannot_be_written(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("data", "--data-dir", write())
    (tmp_path / "file").write_text("not a folder")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        shown = refused(capsys, *data, "--home", home)
        assert f"recsys: {tmp_path / 'file'}" in shown
        assert "Name a place that can be read and written" in shown

    def no_folder(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", no_folder)
    assert "/locked/files: Permission denied" in refused(capsys, *data, "--home", tmp_path / "locked")


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
    assert "has no version 2" in refused(capsys, "models", "compare", "1", "2", *at)
    assert "no earlier champion to roll back to" in refused(capsys, "models", "rollback", *at)
    polish = refused(capsys, "train", "--only", "polish", *at)
    assert "There is no stage 'polish'; the stages are features, " in polish
    assert "There is no data set 'ml-1m'" in refused(capsys, "recommend", "--user", "1", "--dataset", "ml-1m", *at)


def test_a_read_only_home_is_read(trained_home: TrainedHome, tmp_path: Path) -> None:
    home = Path(shutil.copytree(trained_home.root, tmp_path / "home"))
    out = tmp_path / "lists.parquet"
    with read_only(home):
        for arguments in (["models", "list"], ["recommend", "--user", "1"], ["batch", "--k", "1", "--out", str(out)]):
            assert command.run([*arguments, "--home", str(home)]) == 0
    assert len(pd.read_parquet(out)) > 0
