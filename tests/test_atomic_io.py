"""What is written is whole or not there."""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys.atomic_io import (
    FORGOTTEN_S,
    fingerprint_files,
    fingerprint_value,
    locked_folder,
    read_json,
    replacing_file,
    replacing_folder,
    write_json,
)


class HaltedError(Exception):
    """Something went wrong in the middle."""


def inside(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_file_appears_whole_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    with replacing_file(path) as beside:
        assert beside.parent == path.parent
        beside.write_text("new")
        assert not path.exists()
    assert inside(tmp_path) == {"a/b/c.txt": "new"}
    with pytest.raises(FileNotFoundError), replacing_file(path):
        pass  # never written
    assert inside(tmp_path) == {"a/b/c.txt": "new"}


@pytest.mark.parametrize("old", [{}, {"c.txt": "old"}])
def test_a_failure_leaves_the_old_file_and_nothing_else(old: dict[str, str], tmp_path: Path) -> None:
    for name, content in old.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(HaltedError), replacing_file(tmp_path / "c.txt") as beside:  # noqa: PT012
        beside.write_text("half")
        raise HaltedError
    assert inside(tmp_path) == old


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "models"
    for content in ("first", "second"):
        with replacing_folder(path) as beside:
            assert list(beside.iterdir()) == []
            (beside / f"{content}.txt").write_text(content)
    with pytest.raises(HaltedError), replacing_folder(path) as beside:  # noqa: PT012
        (beside / "a.txt").write_text("half")
        raise HaltedError
    assert inside(tmp_path) == {"deep/models/second.txt": "second"}
    assert [p.name for p in path.parent.iterdir()] == ["models"]


def killed(path: Path, writer: str) -> None:
    """A process that begins to write at `path`, as `writer` does, and is killed."""
    lines = [
        "import sys, time; from pathlib import Path; from recsys import atomic_io",
        f"with atomic_io.{writer}(Path(sys.argv[1])) as beside:",
        "    (beside / 'half.txt' if beside.is_dir() else beside).write_text('half')",
        "    print('begun', flush=True); time.sleep(60)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines), path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.kill()


@pytest.mark.parametrize("fails", [False, True])
def test_the_next_writer_clears_away_what_a_killed_one_left(fails: bool, tmp_path: Path) -> None:
    for name in ("models", "models.x"):  # of the other path, nothing is touched
        killed(tmp_path / name, "replacing_folder")
    assert sorted(inside(tmp_path).values()) == ["half", "half"]
    with contextlib.suppress(HaltedError), replacing_folder(tmp_path / "models") as beside:
        assert list(beside.iterdir()) == []
        (beside / "a.txt").write_text("new")
        if fails:
            raise HaltedError
    (other,) = tmp_path.glob(".models*")
    assert other.name.startswith(".models.x.")
    assert inside(tmp_path / "models") == ({} if fails else {"a.txt": "new"})


def test_an_old_folder_that_is_the_only_one_is_put_back(tmp_path: Path) -> None:
    """Its writer was killed between the two renames."""
    old = tmp_path / ".models.0123456789abcdef.old"
    old.mkdir()
    (old / "a.txt").write_text("old")
    with locked_folder(old, fcntl.LOCK_EX), pytest.raises(HaltedError), replacing_folder(tmp_path / "models"):
        raise HaltedError
    assert inside(tmp_path) == {f"{old.name}/a.txt": "old"}, "its writer is alive"
    with pytest.raises(HaltedError), replacing_folder(tmp_path / "models"):
        raise HaltedError
    assert inside(tmp_path) == {"models/a.txt": "old"}


def test_an_old_folder_is_locked_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody puts it back between the two renames of a writer that is alive."""
    (tmp_path / "models").mkdir()
    removed = []

    def removing(folder: Path, **_: object) -> None:
        if folder.suffix == ".old":
            with pytest.raises(BlockingIOError), locked_folder(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                pass
            removed.append(folder.exists())

    monkeypatch.setattr("shutil.rmtree", removing)
    with replacing_folder(tmp_path / "models"):
        pass
    assert removed == [True]


def test_two_writers_of_one_place_leave_each_other_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 of two containers that share a volume. The last to end wins."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    with replacing_folder(tmp_path / "models") as first:
        (first / "a.txt").write_text("first")
        with replacing_folder(tmp_path / "models") as second:
            (second / "b.txt").write_text("second")
        assert inside(tmp_path / "models") == {"b.txt": "second"}
    with replacing_file(tmp_path / "c.txt") as first:
        first.write_text("first")
        with replacing_file(tmp_path / "c.txt") as second:
            second.write_text("second")
        assert (tmp_path / "c.txt").read_text() == "second"
    assert inside(tmp_path) == {"models/a.txt": "first", "c.txt": "first"}


def test_a_folder_just_made_is_not_yet_locked_and_stays(tmp_path: Path) -> None:
    (tmp_path / ".models.0123456789abcdef.part").mkdir()
    with replacing_folder(tmp_path / "models") as beside:
        (beside / "a.txt").write_text("new")
    assert {p.name for p in tmp_path.iterdir()} == {"models", ".models.0123456789abcdef.part"}


def test_a_part_of_a_file_is_removed_once_it_is_a_day_old(tmp_path: Path) -> None:
    killed(tmp_path / "c.txt", "replacing_file")
    (left,) = tmp_path.iterdir()
    for age_s, stays in ((FORGOTTEN_S - 60, True), (FORGOTTEN_S + 60, False)):
        os.utime(left, (time.time() - age_s,) * 2)
        with replacing_file(tmp_path / "c.txt") as beside:
            beside.write_text("new")
        assert left.exists() is stays
    assert inside(tmp_path) == {"c.txt": "new"}


def test_json_refuses_what_it_cannot_say_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 0.5], "a": None})
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [1, 0.5]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_fingerprint_covers_names_and_bytes_and_no_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_bytes(b"1" * (1 << 20) + b"2")
    b.write_bytes(b"3")
    expected = hashlib.sha256(b"a.csv\0" + a.read_bytes() + b"b.csv\0" + b"3").hexdigest()
    assert fingerprint_files([a, b]) == fingerprint_files([b, a]) == expected
    of_value = hashlib.sha256(b'{"a": [1, 2], "b": 0.5}').hexdigest()
    assert fingerprint_value({"b": 0.5, "a": [1, 2]}) == fingerprint_value({"a": (1, 2), "b": 0.5}) == of_value
