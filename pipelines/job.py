"""One run of the pipeline: what every stage may use, and the rule by which a finished stage is skipped.

Stage: all of the offline track. In: a data set's home and settings. Out: `Job`, `run_stages`. Absent: what a stage
does (its own module) and their order (`stages`).

A stage is skipped when its record in `stages/` carries the same key and its outputs exist. The key covers the code of
`recsys` and `pipelines`, the stage's settings, and the keys of the stages it reads from, so any change upstream
reaches down. The record also says which runs of those stages it read: one of them alone run again (`--only`, or after
a kill) makes it stale. A stage writes its record last; one that was killed runs again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.config import PipelineConfig
from recsys.atomic_io import fingerprint_files, fingerprint_value, read_json, write_json
from recsys.data.split import Split, split_by_time
from recsys.data.tables import Tables
from recsys.errors import ConfigError, MissingArtefactError
from recsys.feature_store import FeatureStore
from recsys.features.catalogue import Catalogue
from recsys.features.histories import Histories
from recsys.registry import Registry, model_name_for
from recsys.settings import Settings
from recsys.workspace import DatasetWorkspace, Workspace

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Job:
    """Everything a stage needs. `report` prints a line for the person who watches."""

    root: Workspace
    home: DatasetWorkspace
    settings: Settings
    config: PipelineConfig
    tables: Tables
    report: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    key: str = ""  # of the stage that runs

    @cached_property
    def split(self) -> Split:
        return split_by_time(self.tables.events["timestamp"].to_numpy())

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.from_tables(self.tables.items, self.tables.users)

    @cached_property
    def histories(self) -> Histories:
        return Histories.from_tables(self.catalogue, self.tables.events, self.tables.users)

    @cached_property
    def store(self) -> FeatureStore:
        return FeatureStore(self.settings.feature_store(self.home))

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.settings.mlflow_tracking_uri, self.root.mlflow, model_name_for(self.home.name))

    def window(self, after: int, through: int) -> pd.DataFrame:
        """Events with after < timestamp <= through."""
        events = self.tables.events
        return events[(events["timestamp"] > after) & (events["timestamp"] <= through)]

    def work(self, name: str) -> Path:
        return self.home.work / name

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A callback that reports every few seconds how much is done and how long the rest will take."""
        started = last = time.perf_counter()

        def tell(done: int, of: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last >= 5 and 0 < done < of:
                last = now
                self.report(f"{what}: {done:,} of {of:,}, about {(now - started) / done * (of - done):.0f} s left")

        return tell


@dataclass(frozen=True)
class Stage:
    """name, what it does in a few words, the function, the stages it reads from, its settings, its outputs."""

    name: str
    says: str
    run: Callable[[Job], None]
    after: tuple[str, ...]
    settings: Callable[[PipelineConfig], Any]
    outputs: Callable[[Job], Sequence[Path]]


def run_stages(job: Job, stages: Sequence[Stage], *, only: str | None = None, force: bool = False) -> None:
    """Run every stage in order, or one of them; skip what is up to date. `force` skips nothing.

    Raises ConfigError for an unknown stage, MissingArtefactError where `only` needs a stage that never finished.
    """
    if only is not None and only not in {s.name for s in stages}:
        raise ConfigError(f"There is no stage {only!r}; the stages are {', '.join(s.name for s in stages)}.")
    keys: dict[str, str] = {}
    code = code_fingerprint()
    data = job.tables.info.fingerprint
    for number, stage in enumerate(stages, start=1):
        key = fingerprint_value([code, data, stage.settings(job.config), [keys[name] for name in stage.after]])
        keys[stage.name] = key
        record = job.home.stages / f"{stage.name}.json"
        stored: Mapping[str, Any] = read_json(record) if record.exists() else {}
        read = {name: _finished(job, name) for name in stage.after}
        outputs_exist = all(path.exists() for path in stage.outputs(job))
        fresh = stored.get("key") == key and stored.get("read") == read and outputs_exist
        if only is not None and stage.name != only:
            continue
        if only is not None:
            _require(job, stage, stages)
        head = f"[{number}/{len(stages)}] {stage.name}"
        if fresh and not force:
            job.seconds[stage.name] = float(stored["seconds"])
            job.report(f"{head}: up to date ({stored['seconds']:.0f} s when it ran)")
            continue
        job.report(f"{head}: {stage.says}")
        record.unlink(missing_ok=True)
        started = time.perf_counter()
        job.key = key
        stage.run(job)
        seconds = time.perf_counter() - started
        job.seconds[stage.name] = seconds
        now = datetime.now(UTC).isoformat()
        write_json(record, {"key": key, "seconds": seconds, "finished_utc": now, "read": read})
        job.report(f"{head}: done in {seconds:.1f} s")


def _require(job: Job, stage: Stage, stages: Sequence[Stage]) -> None:
    by_name = {s.name: s for s in stages}
    for name in stage.after:
        missing = [path for path in by_name[name].outputs(job) if not path.exists()]
        if missing or _finished(job, name) is None:
            lacks = f"{missing[0]} is not there" if missing else "that stage has not finished"
            raise MissingArtefactError(
                f"Stage {stage.name} reads what {name} writes, and {lacks}. Run `recsys train` without --only."
            )


def _finished(job: Job, stage: str) -> str | None:
    """When the stage last finished, to the microsecond; None where it never did, or began again and was killed."""
    record = job.home.stages / f"{stage}.json"
    return str(read_json(record)["finished_utc"]) if record.exists() else None


def code_fingerprint() -> str:
    """Of every line that can change what a stage or a study writes; the names and bytes of the Python files."""
    files = [p for folder in ("recsys", "pipelines", "feature_repo") for p in (REPOSITORY / folder).rglob("*.py")]
    return fingerprint_value(sorted([str(p.relative_to(REPOSITORY)), fingerprint_files([p])] for p in files))
