"""Stages `production` and `register`: the bundle that serves, and its version in the registry.

A production bundle is not evaluated: it carries the metrics and ranks of its evaluated sibling, and says so.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pipelines.bundles import write_bundle
from pipelines.config import PipelineConfig
from pipelines.monitoring.reference import write_reference
from pipelines.stage_runner import Report
from pipelines.training_set import TrainingSet
from recsys.atomic_io import read_json, write_json
from recsys.bundle import read_facts
from recsys.errors import MissingArtefactError
from recsys.evaluation.ranks import RANKS_FILE
from recsys.registry import Registry, VersionInfo
from recsys.workspace import DatasetWorkspace

NO_TAGS: Final[Mapping[str, str]] = MappingProxyType({})
REPORT_FILES = (
    *("leaderboard.json", "leaderboard.png", "retrieval.png", "importance.png"),
    *("cohorts.md", "cohorts.png", "beyond_accuracy.md"),
    *("calibration.json", "calibration.md", "calibration.png", "report.html"),
)


def run(data: TrainingSet, config: PipelineConfig, home: DatasetWorkspace) -> None:
    """Write the production bundle: refitted through the last event, or the evaluated model itself.

    Raises MissingArtefactError where the evaluation has left no ranks.
    """
    evaluated = home.bundles / str(read_json(home.work / "evaluation.json")["bundle_id"])
    ranks = evaluated / RANKS_FILE
    if not ranks.exists():
        raise MissingArtefactError(f"{ranks} is not there. Run `recsys train --only evaluate --force` first.")
    fitted, through = ("all", data.split.end) if config.refit else ("t2", data.split.t2)
    carried = [ranks, write_reference(data, config, home, f"ranker_{fitted}")]
    folder = write_bundle(home, data, config, "production", fitted, through, read_facts(evaluated), carried)
    write_json(home.work / "production.json", {"bundle_id": folder.name, "sibling_id": evaluated.name})


def register_pair(
    home: DatasetWorkspace, registry: Registry, seconds: Mapping[str, float], tags: Mapping[str, str] = NO_TAGS
) -> VersionInfo:
    """The version of what the last `production` stage wrote. `seconds` of each stage become tags."""
    pair = read_json(home.work / "production.json")
    return registry.register(
        home.bundles / pair["bundle_id"],
        evaluation_dir=home.bundles / pair["sibling_id"],
        report_files=[path for name in REPORT_FILES if (path := home.reports / name).exists()],
        tags={**{f"seconds.{stage}": f"{taken:.1f}" for stage, taken in seconds.items()}, **tags},
    )


def register(
    home: DatasetWorkspace, registry: Registry, seconds: Mapping[str, float], latency_budget_ms: float, report: Report
) -> None:
    """Register the pair, ask the gate, promote if it passes."""
    version = register_pair(home, registry, seconds)
    result = registry.judge(version.version, latency_budget_ms=latency_budget_ms)
    for check in result.checks:
        report(f"gate: {'ok  ' if check.passed else 'FAIL' if check.decides else 'warn'} {check.sentence}")
    if result.passed:
        registry.promote(version.version)
    overrule = f"stays challenger; `recsys models promote {version.version} --force` overrules the gate"
    report(f"version {version.version} of {registry.model_name} {'is champion' if result.passed else overrule}")
    write_json(home.work / "registered.json", {"version": version.version, "champion": result.passed})
