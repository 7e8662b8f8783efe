"""How stages run: in order, and only those that are not up to date.

A stage is up to date when its record in `stages/` carries its key and its outputs exist. The key covers the code that
the stage can reach, the data, its settings, and the recorded keys of the stages it reads, so that a change reaches
everything downstream. A key knows neither a path nor a moment: a copied home stays up to date. The record is written
last, so a stage that was killed runs again.
"""

import ast
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from recsys.atomic_io import fingerprint_value, read_json, write_json
from recsys.errors import ConfigError, MissingArtefactError
from recsys.threads import limited

REPOSITORY = Path(__file__).resolve().parent.parent
Report = Callable[[str], None]  # prints a line for the person who watches


def say(line: str) -> None:
    typer.echo(line, err=True)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One line of the pipeline.

    code         the module whose function `run` calls
    run          does the work; everything it reads is an argument of that function
    depends_on   the stages whose outputs it reads
    settings     what of the settings changes its outputs; anything that JSON can say
    outputs      the files and folders that must exist afterwards
    """

    name: str
    description: str
    code: ModuleType
    run: Callable[[], None]
    depends_on: tuple[str, ...] = ()
    settings: Any = None
    outputs: Callable[[], Sequence[Path]]


@dataclass(frozen=True)
class StageRecord:
    """That a stage finished."""

    key: str
    seconds: float
    finished_utc: str


def run_stages(
    stages: Sequence[Stage], records: Path, data: str, report: Report, *, only: str | None = None, force: bool = False
) -> dict[str, float]:
    """Run every stage, or only one; skip what is up to date, unless `force`. The seconds of each, when it last ran.

    records   the folder with a record for each finished stage
    data      fingerprint of the data that all stages read
    Raises ConfigError for an unknown stage, MissingArtefactError where `only` needs a stage that never finished.
    """
    by_name = {s.name: s for s in stages}
    if only is not None and only not in by_name:
        raise ConfigError(f"There is no stage {only!r}; the stages are {', '.join(by_name)}.")
    seconds: dict[str, float] = {}
    for number, stage in enumerate(stages, start=1):
        if only not in (None, stage.name):
            continue
        inputs = [_finished(by_name[name], records, stage.name).key for name in stage.depends_on]
        key = fingerprint_value([code_fingerprint(stage.code.__name__), data, stage.settings, inputs])
        record = read_record(records, stage.name)
        head = f"[{number}/{len(stages)}] {stage.name}"
        if not force and record is not None and record.key == key and all(path.exists() for path in stage.outputs()):
            seconds[stage.name] = record.seconds
            report(f"{head}: up to date ({record.seconds:.0f} s when it ran)")
            continue
        report(f"{head}: {stage.description}")
        file = records / f"{stage.name}.json"
        file.unlink(missing_ok=True)
        started = time.perf_counter()
        with limited(1):
            stage.run()
        seconds[stage.name] = time.perf_counter() - started
        now = datetime.now(UTC).isoformat()
        write_json(file, {"key": key, "seconds": seconds[stage.name], "finished_utc": now})
        report(f"{head}: done in {seconds[stage.name]:.1f} s")
    return seconds


def read_record(records: Path, stage: str) -> StageRecord | None:
    """None where the stage has not finished, and for a record that cannot be read: the stage then runs again."""
    try:
        return StageRecord(**read_json(records / f"{stage}.json"))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def stage_seconds(records: Path) -> dict[str, float]:
    """Seconds of every finished stage, in the order in which they finished."""
    by_name = {path.stem: read_record(records, path.stem) for path in records.glob("*.json")}
    finished = sorted((record.finished_utc, name, record.seconds) for name, record in by_name.items() if record)
    return {name: seconds for _, name, seconds in finished}


def progress(report: Report, what: str) -> Callable[[int, int], None]:
    """A callback that reports every few seconds how much is done and how long the rest will take."""
    started = last = time.perf_counter()

    def show(done: int, of: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= 5 and 0 < done < of:
            last = now
            report(f"{what}: {done:,} of {of:,}, about {(now - started) / done * (of - done):.0f} s left")

    return show


def _finished(stage: Stage, records: Path, reader: str) -> StageRecord:
    record = read_record(records, stage.name)
    missing = [path for path in stage.outputs() if not path.exists()]
    if record is None or missing:
        lacks = f"{missing[0]} is not there" if missing else "that stage has not finished"
        raise MissingArtefactError(
            f"Stage {reader} reads what {stage.name} writes, and {lacks}. Run `recsys train` without --only."
        )
    return record


def code_fingerprint(module: str, repository: Path = REPOSITORY) -> str:
    """Of the named module, of what it reaches below `recsys` and `pipelines`, and of Feast's definitions. Comments,
    docstrings, blank lines and layout do not count, so editing them trains nothing again."""
    code = reachable_code(module, repository)
    code |= {path: _code_and_imports(path)[0] for path in (repository / "feature_repo").rglob("*.py")}
    return fingerprint_value(sorted((str(path.relative_to(repository)), text) for path, text in code.items()))


def reachable_code(module: str, repository: Path = REPOSITORY) -> dict[Path, str]:
    """The files of ours that the named module imports, directly or not, itself included; a fingerprint of each."""
    code: dict[Path, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = repository.joinpath(*name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if name.partition(".")[0] in ("recsys", "pipelines") and file not in code and file.exists():
                code[file], imported = _code_and_imports(file)
                pending += imported
    return code


@cache
def _code_and_imports(path: Path) -> tuple[str, tuple[str, ...]]:
    """A fingerprint of a file's code without docstrings, and the names that it imports, wherever it does so."""
    tree = ast.parse(path.read_bytes())
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        elif isinstance(node, ast.Import):
            imported += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return fingerprint_value(ast.dump(tree)), tuple(imported)
