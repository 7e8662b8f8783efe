"""A bundle: everything that answers a request, in one folder that is saved, loaded and promoted whole.

Stage: both tracks. In: catalogue, fitted retrievers, ranker, settings and facts about the training. Out: a folder, and
back a `Bundle`. Absent: registration (`recsys.registry`), training. Nothing in a bundle can run code on load: weights
are safetensors, the index is FAISS's format, trees are LightGBM text, the rest is JSON and Parquet.

    bundle.json                facts (below) and the SHA-256 of every other file
    catalogue.parquet|.json    items, genres, vocabulary, profile labels: the id map
    retrievers/<name>/            one folder a retriever
    ranker.txt ranker_base.json  the trees, and the logistic score that they add to
    calibration.json like.json   probabilities beside the scores; absent where none were fitted
    logistic.json              the baseline of the leaderboard
    recommender.json           settings of the path
    ranks.parquet              what the metrics rest on (`evaluation.ranks`); carried, never read here
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recsys.atomic_io import read_json, replacing_file, replacing_folder, write_json
from recsys.data.tables import DatasetInfo
from recsys.errors import BundleError
from recsys.features.catalogue import Catalogue
from recsys.ranking.calibration import MAPS, Probabilities
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.recommender import Recommender, RecommenderSettings
from recsys.retrieval.retriever import Retriever
from recsys.retrieval.retrievers import load_retrievers

FORMAT = 1


@dataclass(frozen=True)
class BundleFacts:
    """What is known about a bundle besides its files.

    bundle_id        unique name, also the folder's name
    dataset          where the data came from
    trained_through  timestamp of the last event that any part has seen, seconds UTC
    role             "evaluation" (frozen at T2) or "production" (refitted through the last event)
    sibling_id       for a production bundle, the evaluation bundle whose metrics it carries; else None
    code_version     git commit, or the package version
    metrics          of the evaluation sibling; empty before evaluation
    parameters       settings of every stage
    created_utc      ISO 8601
    """

    bundle_id: str
    dataset: DatasetInfo
    trained_through: int
    role: str
    sibling_id: str | None
    code_version: str
    created_utc: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    facts: BundleFacts
    recommender: Recommender
    logistic: LogisticRanker
    folder: Path


def save_retrievers(retrievers: Sequence[Retriever], folder: Path) -> None:
    """Write each retriever into `folder`/<its name>."""
    for retriever in retrievers:
        place = folder / retriever.name
        place.mkdir(parents=True)
        retriever.save(place)


def save_bundle(
    folder: Path,
    facts: BundleFacts,
    catalogue: Catalogue,
    retrievers: Sequence[Retriever],
    ranker: BoostedRanker,
    logistic: LogisticRanker,
    settings: RecommenderSettings,
    probabilities: Probabilities | None = None,
    files: Sequence[Path] = (),
) -> None:
    """Write the whole folder beside its place and rename it in. Without `probabilities` it gives scores alone; `files`
    are copied in under their own names."""
    with replacing_folder(folder) as beside:
        catalogue.save(beside)
        save_retrievers(retrievers, beside / "retrievers")
        ranker.save(beside)
        logistic.save(beside)
        if probabilities is not None:
            probabilities.save(beside)
        write_json(beside / "recommender.json", asdict(settings))
        for path in files:
            shutil.copyfile(path, beside / path.name)
        _write_facts(beside, facts)


def with_metrics(folder: Path, metrics: Mapping[str, Any], files: Sequence[Path] = ()) -> BundleFacts:
    """Set the metrics of a saved bundle, and add `files` with their digests under their own names. All else stays as it
    is, and so do the recorded digests: what was altered since is not blessed by this."""
    read_facts(folder)
    stored = read_json(folder / "bundle.json")
    digests = {**stored.get("files", {}), **{path.name: _digest(path) for path in files}}
    write_json(folder / "bundle.json", {**stored, "metrics": dict(metrics), "files": digests})
    for path in files:  # after the metrics, which may be refused
        with replacing_file(folder / path.name) as beside:
            shutil.copyfile(path, beside)
    return read_facts(folder)


def read_facts(folder: Path) -> BundleFacts:
    """The facts alone, without loading a model. Raises BundleError where there is no readable bundle."""
    path = folder / "bundle.json"
    if not path.exists():
        raise BundleError(f"{folder} holds no bundle (bundle.json is missing); train with `recsys train`")
    try:
        stored = read_json(path)
        if stored["format"] != FORMAT:
            raise BundleError(f"{path} has format {stored['format']}, this code reads {FORMAT}; train again")
        fields = {name: stored[name] for name in BundleFacts.__dataclass_fields__}
        return BundleFacts(**{**fields, "dataset": DatasetInfo(**fields["dataset"])})
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); the bundle is broken, train again") from error


def load_bundle(folder: Path, *, ranker_threads: int = 1) -> Bundle:
    """Check every file against its SHA-256, then load. Raises BundleError for a missing, altered or foreign file."""
    facts = read_facts(folder)
    recorded = read_json(folder / "bundle.json").get("files", {})
    present = _digests(folder)
    if recorded != present:
        differing = sorted({n for n in recorded.keys() | present.keys() if recorded.get(n) != present.get(n)})
        raise BundleError(f"{folder} is not as it was saved: {', '.join(differing[:5])} missing, altered or added")
    catalogue = Catalogue.load(folder)
    retrievers = load_retrievers(folder / "retrievers", catalogue)
    settings = RecommenderSettings(**read_json(folder / "recommender.json"))
    ranker = BoostedRanker.load(folder, ranker_threads)
    probabilities = Probabilities.load(folder) if (folder / MAPS).exists() else None
    recommender = Recommender(catalogue, retrievers, ranker, settings, probabilities)
    return Bundle(facts, recommender, LogisticRanker.load(folder), folder)


def _write_facts(folder: Path, facts: BundleFacts) -> None:
    write_json(folder / "bundle.json", {"format": FORMAT, **asdict(facts), "files": _digests(folder)})


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below the folder but its own bundle.json, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / "bundle.json")
    return {p.relative_to(folder).as_posix(): _digest(p) for p in files}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
