"""A home whose files were cut, emptied or removed: every command ends with a line for the reader, never a traceback."""

import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from recsys import command
from recsys.damage import explain
from tests.conftest import TrainedHome

DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "overwritten": lambda path: path.write_bytes(b"\0garbage" * 100),
}
FILES = (
    "current.json",
    "synthetic/data/dataset.json",
    "synthetic/data/events.parquet",
    "synthetic/data/users.parquet",
    "synthetic/features/*.parquet",
    "synthetic/feast/*.db",
    "synthetic/stages/features.json",
    "synthetic/stages/evaluate.json",
    "synthetic/work/*.json",
    "synthetic/bundles/*-production/bundle.json",
    "mlflow/mlflow.db",
)
COMMANDS = (("models", "list"), ("recommend", "--user", "1", "--k", "1"))


@pytest.mark.usefixtures("small_settings")
@pytest.mark.parametrize(("pattern", "damage"), [*zip(FILES, cycle(DAMAGE), strict=False)])
def test_every_command_ends_with_a_line(
    pattern: str, damage: str, trained_home: TrainedHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Path(shutil.copytree(trained_home.root, tmp_path / "home"))
    damaged = sorted(home.glob(pattern))
    assert damaged, "nothing was damaged"
    for path in damaged:
        DAMAGE[damage](path)
    for arguments in COMMANDS:
        code = command.run([*arguments, "--home", str(home)])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        assert code == 0 or (code == 2 and shown.err.strip()), shown


def test_the_damaged_file_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text('{"a": 1}')
    assert explain(KeyError("a"), tmp_path) is None
    for name in ("a.json", "b.parquet", "c.db"):
        (tmp_path / name).write_bytes(b"\0garbage" * 200)
        line = explain(KeyError("a"), tmp_path)
        assert str(line).startswith(f"{tmp_path / name} is damaged: ")
        assert "Restore it, or remove it and run the command that writes it again" in str(line)
        (tmp_path / name).unlink()


def test_a_missing_file_is_named_where_it_belongs_to_the_home(tmp_path: Path) -> None:
    missing = FileNotFoundError(2, "No such file", str(tmp_path / "events.parquet"))
    assert str(explain(missing, tmp_path)).startswith(f"{tmp_path / 'events.parquet'} is missing. ")
    assert explain(FileNotFoundError(2, "No such file", "/elsewhere"), tmp_path) is None
    assert explain(RuntimeError(f"no files found in {tmp_path}/x"), tmp_path) is not None
