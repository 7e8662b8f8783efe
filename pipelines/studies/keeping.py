"""Keeping a data set's tables and pictures where a reader finds them.

Stage: a study beside the pipeline. In: `reports/` of a home. Out: its Markdown tables and pictures in `<folder>/<data
set>/`, each written beside and renamed. Absent: the figures themselves (`pipelines.evaluation` and the other studies).
"""

from pathlib import Path

from pipelines.job import Job
from recsys.artefacts import replacing_file
from recsys.errors import MissingArtefactError

KEPT = (".md", ".png")


def keep(job: Job, folder: Path) -> list[Path]:
    """Copy what the reports hold; the files written. Raises MissingArtefactError where there is no report yet."""
    found = sorted(p for p in job.home.reports.glob("*") if p.suffix in KEPT)
    if not found:
        raise MissingArtefactError(f"{job.home.reports} holds no report yet. Run `recsys train` or `recsys evaluate`.")
    place = folder / job.home.name
    place.mkdir(parents=True, exist_ok=True)
    for path in found:
        with replacing_file(place / path.name) as beside:
            beside.write_bytes(path.read_bytes())
    return [place / path.name for path in found]
