"""A copy of the trained home that may change; and a second home with a known world: killed on the way, gone on, twice
registered, without refit."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import pipelines.evaluation
from recsys import command
from recsys.workspace import DatasetWorkspace, Workspace
from tests.conftest import TrainedHome, use_small_settings
from tests.pipelines.cycle_world import write_ml_1m

Snapshot = dict[str, tuple[int, int]]


def run_command(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command.run([str(a) for a in arguments])
    return code, out.getvalue(), err.getvalue()


def snapshot(folder: Path) -> Snapshot:
    """Modification time (ns) and size of every file."""
    stats = ((p, p.stat()) for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): (s.st_mtime_ns, s.st_size) for p, s in stats}


@pytest.fixture(scope="module")
def changed_home(trained_home: TrainedHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedHome]:
    """A copy of the trained home that the tests of a module may change."""
    root = tmp_path_factory.mktemp("changed") / "home"
    shutil.copytree(trained_home.root, root)
    with pytest.MonkeyPatch.context() as patch:
        use_small_settings(patch)
        yield TrainedHome(root, trained_home.raw)


@dataclass
class CycleHome:
    """output: stderr of the commands by name. records: stages recorded after each."""

    root: Path
    files: Path
    output: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    records: dict[str, set[str]] = field(default_factory=dict)
    trained_before: Snapshot = field(default_factory=dict)

    @property
    def dataset(self) -> DatasetWorkspace:
        return Workspace(self.root).dataset("cycle")

    def run(self, name: str, *arguments: str | Path) -> None:
        self.codes[name], _, self.output[name] = run_command(*arguments, "--home", self.root)
        self.records[name] = {p.stem for p in self.dataset.stages.glob("*.json")}


@pytest.fixture(scope="session")
def cycle_home(trained_home: TrainedHome, tmp_path_factory: pytest.TempPathFactory) -> CycleHome:
    folder = tmp_path_factory.mktemp("second")
    home = CycleHome(folder / "home", write_ml_1m(folder / "cycle"), trained_before=snapshot(trained_home.root))
    train = ("train", "--no-refit", "--epochs", "6", "--budget-ms", "50000")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        use_small_settings(patch)
        with patch.context() as killing:
            killing.setattr(pipelines.evaluation, "measure", killed)
            home.run("killed", *train, "--data-dir", home.files)
        home.run("again", *train)
        home.run("registered again", *train[:-1], "60000")
    return home
