"""The bundles of a data set: what a new one is called and says of itself, and the evaluated one."""

from datetime import UTC, datetime

from pipelines.config import PipelineConfig
from pipelines.training_set import TrainingSet
from recsys.atomic_io import read_json
from recsys.bundle import Bundle, BundleFacts, load_bundle
from recsys.errors import BundleError, MissingArtefactError
from recsys.evaluation.about import code_version, now_utc
from recsys.workspace import DatasetWorkspace


def new_bundle_id(dataset: str, role: str) -> str:
    """Unique by its moment: <dataset>-<UTC time>-<role>."""
    return f"{dataset}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{role}"


def bundle_facts(
    data: TrainingSet,
    config: PipelineConfig,
    bundle_id: str,
    role: str,
    trained_through: int,
    sibling: BundleFacts | None = None,
) -> BundleFacts:
    """What a new bundle says of itself. With an evaluated `sibling` it carries that one's metrics."""
    return BundleFacts(
        bundle_id=bundle_id,
        dataset=data.tables.info,
        trained_through=trained_through,
        through_seq=data.through_seq,
        role=role,
        sibling_id=None if sibling is None else sibling.bundle_id,
        code_version=code_version(),
        created_utc=now_utc(),
        metrics={} if sibling is None else sibling.metrics,
        parameters=config.as_dict(),
    )


def evaluation_bundle(home: DatasetWorkspace, data: TrainingSet) -> Bundle:
    """The bundle that the last `evaluate` stage made. Raises MissingArtefactError where there is none."""
    path = home.work / "evaluation.json"
    if not path.exists():
        raise MissingArtefactError(f"{home.name} has no evaluated model yet. Run `recsys train` first.")
    bundle = load_bundle(home.bundles / read_json(path)["bundle_id"])
    require_same_data(data, bundle)
    return bundle


def require_same_data(data: TrainingSet, bundle: Bundle) -> None:
    """Raise BundleError where the bundle was made from other data than the last training's."""
    trained, now, name = bundle.facts.dataset.fingerprint, data.tables.info.fingerprint, data.tables.info.name
    if trained != now:
        raise BundleError(
            f"{bundle.facts.bundle_id} was trained on data {trained[:12]}, the tables of {name} now hold "
            f"{now[:12]}. Run `recsys train`; where the gate refuses the new version, `recsys models promote` it."
        )
