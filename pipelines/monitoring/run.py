"""The skew check of a home: its log, its events and its bundles, and the report in its folder."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

from pipelines import training_set
from pipelines.monitoring.distributions import with_drift
from pipelines.monitoring.recompute import Recomputer
from pipelines.monitoring.skew import SkewReport, check
from recsys.atomic_io import replacing_file, write_json
from recsys.bundle import Bundle, load_bundle
from recsys.data.tables import load_tables
from recsys.evaluation.about import about, command_line
from recsys.monitoring.prediction_log import predictions_folder, read_answers
from recsys.registry import Registry, model_name_for
from recsys.settings import Settings
from recsys.threads import limited
from recsys.workspace import DatasetWorkspace

LEARNT_WITH = "retrievers_t2"  # the retrievers whose candidates the last ranker learnt from


def check_home(home: DatasetWorkspace, settings: Settings, *, since: float = 0.0, drift: bool = True) -> SkewReport:
    """Check the answers received since a moment, seconds UTC. Raises DataError if there are none."""
    registry = Registry(settings.mlflow_tracking_uri, settings.paths().mlflow, model_name_for(home.name))

    def load(bundle_id: str) -> Bundle:
        """From the home, else from the registry. Raises RecsysError where neither has it."""
        folder = home.bundles / bundle_id
        for version in () if folder.exists() else registry.versions():
            if version.bundle_id == bundle_id:
                folder = registry.download(version, home.bundles)
        return load_bundle(folder)

    data = training_set.load(home)
    recomputer = Recomputer(load_tables(home.data), settings.event_table(home), load)
    with limited(1):
        frames = read_answers(predictions_folder(home), since=since)
        report, shown = check(recomputer, frames, data.tables.info.label, data.through_seq)
        if drift:
            report = with_drift(report, shown, recomputer.recommender, data, home.work / LEARNT_WITH)
    return replace(report, about=about(command_line(sys.argv[1:])))


def write(report: SkewReport, folder: Path) -> None:
    """skew.json and skew.txt."""
    write_json(folder / "skew.json", {**asdict(report), "share": report.share, "headline": report.headline()})
    with replacing_file(folder / "skew.txt") as beside:
        beside.write_text(report.text(), encoding="utf-8")
