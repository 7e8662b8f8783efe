"""A bundle: everything that answers a request, in one folder that is saved, verified, loaded and promoted whole.

Nothing in it can run code on load: weights are safetensors, the index is FAISS's format, trees are LightGBM text, the
rest is JSON and Parquet. `python -m recsys.bundle FOLDER` tries one: exit code 0, or 2 and the reason on stderr.

    bundle.json                facts (below) and the SHA-256 of every other file
    catalogue.parquet|.json    items, genres, vocabulary, profile labels: the id map
    retrievers/<name>/         one folder a retriever
    ranker.txt ranker_base.json  the trees, and the logistic score that they add to
    calibration.json like.json   probabilities beside the scores; absent where none were fitted
    logistic.json              the baseline of the leaderboard
    recommender.json           settings of the path
    ranks.parquet              what the metrics rest on (`evaluation.ranks`); carried, never read here
    reference.parquet          what it showed when it was made, for `recsys monitor`; carried too
"""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recsys.atomic_io import read_json, replacing_file, replacing_folder, write_json
from recsys.columns import ITEM_ID
from recsys.data.tables import DatasetInfo
from recsys.errors import BundleError, RecsysError
from recsys.features.catalogue import Catalogue
from recsys.features.item_stats import STATS_COLUMNS, ItemStats, day_of
from recsys.features.state import Event, UserState, fold, state_batch
from recsys.limits import LARGEST_ID
from recsys.ranking.calibration import MAPS, Probabilities
from recsys.ranking.ranker import BoostedRanker, LogisticRanker
from recsys.recommender import Recommender, RecommenderSettings, RequestContext
from recsys.retrieval.retriever import Retriever, read_tensors
from recsys.retrieval.retrievers import load_retrievers

FORMAT = 2
TRIAL_S = 300.0  # a large bundle is read whole
_NOT_FINITE_IN_TREES = re.compile(rb"^(leaf_value=.*(nan|inf)|threshold=.*nan)", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class BundleFacts:
    """bundle_id        unique name, also the folder's name
    trained_through  timestamp of the last event that any part has seen, seconds UTC
    through_seq      the last event of the event table that the training took; 0 where it took none
    role             "evaluation" (frozen at T2) or "production" (refitted through the last event)
    sibling_id       for a production bundle, the evaluation bundle whose metrics it carries; else None
    metrics          of the evaluation sibling; empty before evaluation
    parameters       settings of every stage
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
    through_seq: int = 0


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
    """Set the metrics of a saved bundle, and add `files` under their own names. The recorded digests of all other files
    stay, so that what was altered since is still noticed."""
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


def verify_bundle(folder: Path) -> BundleFacts:
    """Check without loading a model that a bundle is as it was saved and its numbers are finite. Raises BundleError
    with the first thing that is wrong."""
    facts = read_facts(folder)
    recorded, present = read_json(folder / "bundle.json").get("files", {}), _digests(folder)
    if recorded != present:
        differing = sorted({n for n in recorded.keys() | present.keys() if recorded.get(n) != present.get(n)})
        raise BundleError(f"{folder} is not as it was saved: {', '.join(differing[:5])} missing, altered or added")
    for path in sorted(folder.rglob("*.safetensors")):
        read_tensors(path)
    for path in sorted(folder.rglob("*.json")):
        _require_finite(path)
    trees = folder / "ranker.txt"
    if trees.exists() and _NOT_FINITE_IN_TREES.search(trees.read_bytes()):
        raise BundleError(f"{trees} holds numbers that are not finite; train again")
    return facts


def load_bundle(folder: Path) -> Bundle:
    """Verify, then load. Raises BundleError for a missing, altered or foreign file, and for parts that do not fit."""
    facts = verify_bundle(folder)
    try:
        catalogue = Catalogue.load(folder)
        ids = catalogue.item_ids
        if len(ids) and not (ids[0] >= 0 and (np.diff(ids) > 0).all() and ids[-1] <= LARGEST_ID):
            raise BundleError(f"{folder}: the item ids of the catalogue do not rise from 0 to {LARGEST_ID}")
        retrievers = load_retrievers(folder / "retrievers", catalogue)
        settings = RecommenderSettings(**read_json(folder / "recommender.json"))
        ranker = BoostedRanker.load(folder)
        probabilities = Probabilities.load(folder) if (folder / MAPS).exists() else None
        recommender = Recommender(catalogue, retrievers, ranker, settings, probabilities)
        return Bundle(facts, recommender, LogisticRanker.load(folder), folder)
    except BundleError:
        raise
    except Exception as error:  # whatever a library says of a file that is not as it wrote it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{folder} cannot be loaded: {reason}. Train again, or roll back.") from error


def try_bundle(folder: Path) -> None:
    """Load a bundle and let it answer, in a process of its own: LightGBM and FAISS may abort theirs over a file that
    was edited. Raises BundleError where it refuses the bundle, takes longer than TRIAL_S, or dies."""
    command = [sys.executable, "-m", "recsys.bundle", str(folder)]
    try:
        tried = subprocess.run(command, capture_output=True, timeout=TRIAL_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{folder} was not loaded within {TRIAL_S:.0f} s") from error
    if tried.returncode == 0:
        return
    if tried.returncode == 2:  # the reason is the last line; what LightGBM quotes of a file need not be text
        raise BundleError(tried.stderr.decode(errors="backslashreplace").strip().splitlines()[-1])
    raise BundleError(
        f"{folder} makes the process that loads it end with code {tried.returncode}: a model file is damaged. "
        "Train again, or roll back."
    )


def _trial(folder: Path) -> None:
    """Load, and answer a newcomer and a user of a few ratings. Raises BundleError for an answer that cannot be."""
    bundle = load_bundle(folder)
    catalogue, now = bundle.recommender.catalogue, bundle.facts.trained_through + 86_400
    events = [Event(int(item_id), 4.0, now - 60) for item_id in catalogue.item_ids[:3]]
    states = state_batch(catalogue, [UserState(0), fold(UserState(0), events)], now)
    no_rows = pd.DataFrame(columns=[ITEM_ID, *STATS_COLUMNS])
    context = RequestContext(ItemStats.from_rows(catalogue, no_rows, int(day_of(now))))
    answer = bundle.recommender.recommend(states, context, 10)
    if not np.isfinite(answer.scores[answer.item_ids >= 0]).all():
        raise BundleError(f"{folder} answers with scores that are not finite; train again")


def _require_finite(path: Path) -> None:
    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise BundleError(f"{path} holds the number {text}, which is not finite; train again")
        return value

    try:
        json.loads(path.read_text(encoding="utf-8"), parse_constant=number, parse_float=number)
    except ValueError as error:
        raise BundleError(f"{path} cannot be read ({error}); train again") from error


def _write_facts(folder: Path, facts: BundleFacts) -> None:
    write_json(folder / "bundle.json", {"format": FORMAT, **asdict(facts), "files": _digests(folder)})


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below the folder but its own bundle.json, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / "bundle.json")
    return {p.relative_to(folder).as_posix(): _digest(p) for p in files}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    try:
        _trial(Path(sys.argv[1]))
    except RecsysError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
