"""How a study is kept: `reports/<name>.json` from its dataclass, `.md` and `.png`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from recsys.atomic_io import replacing_file, write_json
from recsys.data.tables import DatasetInfo
from recsys.evaluation.bootstrap import Bootstrap
from recsys.evaluation.leaderboard import data_of
from recsys.evaluation.tables import BUNDLE


@dataclass(frozen=True)
class StudyRun:
    """Which data, which run, and which bundle if one was measured."""

    data: DatasetInfo
    about: Mapping[str, str]
    bundle_id: str | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    @property
    def facts(self) -> dict[str, str]:
        return {**self.about, **({BUNDLE: self.bundle_id} if self.bundle_id else {})}


class Study(Protocol):
    """A dataclass that knows its run."""

    @property
    def run(self) -> StudyRun: ...


def write_study(folder: Path, name: str, study: Study, markdown: str = "", picture: bytes = b"") -> None:
    values = asdict(study)  # type: ignore[call-overload]
    values["run"]["data"] = data_of(study.run.data)
    write_json(folder / f"{name}.json", values)
    for ending, content in ((".md", markdown.encode()), (".png", picture)):
        if markdown and content:
            with replacing_file(folder / f"{name}{ending}") as beside:
                beside.write_bytes(content)
