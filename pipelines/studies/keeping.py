"""`recsys keep`: a data set's tables and pictures copied to where a reader finds them."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.pipeline import Pipeline
from recsys.atomic_io import replacing_file
from recsys.errors import MissingArtefactError
from recsys.evaluation.tables import bundle_of

LEADERBOARD = "leaderboard.md"


def keep(pipeline: Pipeline, folder: Path) -> list[Path]:
    """Copy the Markdown tables and pictures of `reports/` to `<folder>/<data set>/`; the files written.

    Warns of tables that were not measured on the model of the leaderboard. Raises MissingArtefactError where there is
    no report yet.
    """
    reports = pipeline.home.reports
    found = sorted(path for path in reports.glob("*") if path.suffix in (".md", ".png"))
    if not found:
        raise MissingArtefactError(f"{reports} holds no report yet. Run `recsys train` or `recsys evaluate`.")
    if others := of_other_bundles(found):
        pipeline.report(
            f"warning: {', '.join(others)}: measured on another model than {LEADERBOARD}, or without saying which. "
            "Measure again what is to stand side by side."
        )
    kept = {folder / pipeline.home.name / path.name: path for path in found}
    for place, path in kept.items():
        with replacing_file(place) as beside:
            beside.write_bytes(path.read_bytes())
    return [*kept]


def of_other_bundles(paths: Sequence[Path]) -> list[str]:
    """Names of the tables whose bundle is not that of the leaderboard, and of those that do not say how they were
    measured. What was measured without a bundle (a search, a protocol that fits its own models) is never named."""
    bundles = {p.name: bundle_of(p.read_text(encoding="utf-8")) for p in paths if p.suffix == ".md"}
    leaderboard = bundles.get(LEADERBOARD)
    return [name for name, bundle in bundles.items() if bundle is None or (bundle and bundle != leaderboard)]
