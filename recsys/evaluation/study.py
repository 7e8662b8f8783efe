"""How a measurement is kept: `<name>.json` from its dataclass, with `.md` and `.png` beside it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from recsys.atomic_io import replacing_file, write_json
from recsys.data.tables import DatasetInfo
from recsys.evaluation.bootstrap import Bootstrap
from recsys.evaluation.leaderboard import data_of
from recsys.evaluation.tables import BUNDLE, with_facts


@dataclass(frozen=True)
class StudyRun:
    """Which data, which run, and which bundle if one was measured."""

    data: DatasetInfo
    about: Mapping[str, str]
    bundle_id: str | None = None
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


@dataclass(frozen=True)
class Study:
    """What was measured in one run; each study adds its figures."""

    run: StudyRun


def write_study(folder: Path, name: str, study: Study, markdown: str = "", picture: bytes = b"") -> str:
    """Write the JSON form, and the others where they are given. Returns the Markdown with its facts as last line."""
    run = study.run
    write_json(folder / f"{name}.json", {**asdict(study), "run": {**asdict(run), "data": data_of(run.data)}})
    text = with_facts(markdown, {**run.about, **({BUNDLE: run.bundle_id} if run.bundle_id else {})})
    for ending, content in ((".md", text.encode() if markdown else b""), (".png", picture)):
        if content:
            with replacing_file(folder / f"{name}{ending}") as beside:
                beside.write_bytes(content)
    return text
