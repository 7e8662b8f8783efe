"""The bundles of a data set: writing a new one from what stages fitted, and loading the evaluated one."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipelines.config import PipelineConfig
from pipelines.training_set import TrainingSet
from recsys.atomic_io import read_json
from recsys.bundle import Bundle, BundleFacts, load_bundle, save_bundle
from recsys.errors import BundleError, MissingArtefactError
from recsys.evaluation.about import code_version, now_utc
from recsys.ranking.calibration import Probabilities
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.retrieval.retrievers import load_retrievers
from recsys.workspace import DatasetWorkspace


def write_bundle(
    home: DatasetWorkspace,
    data: TrainingSet,
    config: PipelineConfig,
    role: str,
    fitted: str,
    trained_through: int,
    sibling: BundleFacts | None = None,
    files: Sequence[Path] = (),
) -> Path:
    """Save what the stages `retrievers_<fitted>` and `ranker_<fitted>` wrote; the folder, whose name is unique by its
    moment. With an evaluated `sibling` the bundle carries that one's metrics."""
    bundle_id = f"{home.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{role}"
    facts = BundleFacts(
        bundle_id=bundle_id,
        dataset=data.tables.info,
        trained_through=trained_through,
        through_seq=data.through_seq,
        role=role,
        sibling_id=sibling.bundle_id if sibling else None,
        code_version=code_version(),
        created_utc=now_utc(),
        metrics=sibling.metrics if sibling else {},
        parameters=config.as_dict(),
    )
    folder, ranker = home.bundles / bundle_id, home.work / f"ranker_{fitted}"
    save_bundle(
        folder,
        facts,
        data.catalogue,
        load_retrievers(home.work / f"retrievers_{fitted}", data.catalogue),
        BoostedRanker.load(ranker),
        LogisticRanker.load(ranker),
        config.recommender,
        Probabilities.load(ranker),
        files,
    )
    return folder


def evaluation_bundle(home: DatasetWorkspace, data: TrainingSet) -> Bundle:
    """The bundle that the last `evaluate` stage made. Raises MissingArtefactError where there is none, BundleError
    where it was made from other data than the last training's."""
    path = home.work / "evaluation.json"
    if not path.exists():
        raise MissingArtefactError(f"{home.name} has no evaluated model yet. Run `recsys train` first.")
    bundle = load_bundle(home.bundles / read_json(path)["bundle_id"])
    trained, now, name = bundle.facts.dataset.fingerprint, data.tables.info.fingerprint, data.tables.info.name
    if trained != now:
        raise BundleError(
            f"{bundle.facts.bundle_id} was trained on data {trained[:12]}, the tables of {name} now hold "
            f"{now[:12]}. Run `recsys train`; where the gate refuses the new version, `recsys models promote --force`."
        )
    return bundle
