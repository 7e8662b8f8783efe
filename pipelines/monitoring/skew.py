"""`recsys skew`: does what was served equal what should have been served?

Stage: monitoring. In: the prediction log, the raw events, the bundles, and the ranker's contexts for the
distributions. Out: `reports/skew.json`, `skew.txt` and `skew.html`. Absent: how an answer is computed again
(`recsys.monitoring.recompute`), and any repair.

Two questions. Equality: every feature of every logged answer, recomputed from raw events as of its moment, is the same
to the bit. Distribution: the features of what is shown today look like those of what the ranker, after its training,
would have shown in the contexts that it learnt from. The first has one right answer. The second moves with the users:
it warns.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from pipelines import retrievers
from pipelines.job import Job
from recsys.atomic_io import write_json
from recsys.bundle import Bundle, load_bundle
from recsys.errors import DataError
from recsys.evaluation.about import about
from recsys.evaluation.leaderboard import data_of
from recsys.features.item_stats import ItemStatsTimeline, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.monitoring.comparison import Comparison
from recsys.monitoring.diagnosis import Finding, diagnose, mismatching_groups, verdict
from recsys.monitoring.drift import Drift, drift_by_feature
from recsys.monitoring.events import logged_events
from recsys.monitoring.prediction_log import MICROSECONDS, Prediction, n_logged, predictions_folder, read_predictions
from recsys.monitoring.raw_events import RawEvents
from recsys.monitoring.recompute import BY_DESIGN, Group, Recomputer, left_out, whole_calls
from recsys.ranking.ranker import Ranker
from recsys.recommender import Recommender
from recsys.training_table import retrieve_contexts

CHUNK: Final = 250  # calls whose states are made together
OTHER_BUNDLES: Final = 8  # the newest ones, tried as the one that really answered
RETRIEVERS_STAGE: Final = "retrievers_t2"  # what the last ranker's candidates were retrieved by
REFERENCE_CONTEXTS: Final = 400
SHIFTED: Final = 0.2  # PSI
Columns = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def run(
    job: Job,
    *,
    since: int = 0,
    most: int | None = None,
    drift: bool = True,
    command: str = "recsys skew",
) -> dict[str, Any]:
    """Check the answers received since a moment (seconds UTC), at most `most` of them, and return what `skew.json`
    holds.

    Raises DataError where nothing was logged since.
    """
    started = time.perf_counter()
    raw = RawEvents(job.tables, logged_events(job.home.events))
    recomputer = Recomputer(raw, lambda bundle_id: _bundle(job, bundle_id))
    shown = _Shown()
    comparison = Comparison()
    calls = whole_calls(read_predictions(predictions_folder(job.home), since_us=since * MICROSECONDS))
    with threadpool_limits(1):
        seen = _compare(job, recomputer, comparison, itertools.islice(calls, most), shown)
        if not seen:
            raise DataError(
                f"{predictions_folder(job.home)} holds no answers of that time. Start the service with `recsys serve` "
                "and ask it something."
            )
        findings = diagnose(recomputer, comparison, _other_bundles(job))
        found, why_not = _drift(job, recomputer, shown) if drift else ({}, "not asked for")
    seconds = time.perf_counter() - started
    result = _result(comparison, findings, found, why_not)
    return {
        "data": data_of(job.tables.info),
        "about": about(command),
        "answers": seen,
        "seconds": round(seconds, 1),
        **result,
    }


def write(job: Job, result: dict[str, Any]) -> None:
    """The report as JSON, text and one page, below the data set's reports."""
    from pipelines.monitoring import skew_report
    from recsys.atomic_io import replacing_file

    write_json(job.home.reports / "skew.json", result)
    for name, text in (("skew.txt", skew_report.text(result)), ("skew.html", skew_report.page(result))):
        with replacing_file(job.home.reports / name) as beside:
            beside.write_text(text, encoding="utf-8")


# -- equality ----------------------------------------------------------------------------------------------------------


class _Shown:
    """Features of what was shown, for the distributions: all of it, as float32."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, tuple[str, ...]], list[Any]] = {}
        self.most_shown = 0

    def add(self, prediction: Prediction) -> None:
        if prediction.features is not None:
            key = (prediction.bundle_id, prediction.feature_names)
            self._parts.setdefault(key, []).append(prediction.features)
            self.most_shown = max(self.most_shown, len(prediction.item_ids))

    def of_the_most_used(self) -> tuple[str, Columns] | None:
        """The bundle that showed most, and its features by name."""
        if not self._parts:
            return None
        (bundle_id, names), parts = max(self._parts.items(), key=lambda pair: len(pair[1]))
        rows = np.concatenate(parts)
        rows = rows[~np.isnan(rows).all(axis=1)]
        return bundle_id, {name: rows[:, column] for column, name in enumerate(names)}


def _compare(job: Job, recomputer: Recomputer, comparison: Comparison, calls: Iterable[Group], shown: _Shown) -> int:
    """Compare call by call; returns how many answers there were."""
    tell = job.progress("skew: answers")
    total = n_logged(predictions_folder(job.home))
    seen = 0
    for chunk in _chunks(calls):
        comparable: list[Group] = []
        for group in chunk:
            seen += len(group)
            for prediction in group:
                shown.add(prediction)
            why = _left_out(recomputer, group)
            if why is None:
                comparable.append(group)
            else:
                comparison.left_out[why] += len(group)
        for call in recomputer.recompute(comparable):
            comparison.add(call, recomputer.raw.newest_day_for(call[0].prediction))
        tell(seen, max(total, seen))
    return seen


def _chunks(calls: Iterable[Group]) -> Iterator[list[Group]]:
    iterator = iter(calls)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


def _left_out(recomputer: Recomputer, group: Group) -> str | None:
    if len(group) < group[0].batch:
        return "other answers of its call are not in the log"
    reasons = [why for why in map(left_out, group) if why is not None]
    if reasons:
        return reasons[0]
    if recomputer.recommender(group[0].bundle_id) is None:
        return f"its bundle {group[0].bundle_id} is gone"
    return None


def _bundle(job: Job, bundle_id: str) -> Bundle:
    """From the home, else from the registry. Raises RecsysError where neither has it."""
    folder = job.home.bundles / bundle_id
    if not folder.exists():
        for version in job.registry.versions():
            if version.bundle_id == bundle_id:
                folder = job.registry.download(version, job.home.bundles)
    return load_bundle(folder, ranker_threads=1)


def _other_bundles(job: Job) -> list[str]:
    """The newest bundles of the home, by name, which begins with the moment of its making after the data set's name."""
    return sorted((path.name for path in job.home.bundles.glob("*/") if not path.name.startswith(".")), reverse=True)[
        :OTHER_BUNDLES
    ]


# -- distribution ------------------------------------------------------------------------------------------------------


def _drift(job: Job, recomputer: Recomputer, shown: _Shown) -> tuple[dict[str, Drift], str]:
    """PSI and KS by feature; where they cannot be had, nothing and why."""
    current = shown.of_the_most_used()
    if current is None:
        return {}, "no answer was ranked"
    bundle_id, columns = current
    recommender = recomputer.recommender(bundle_id)
    if recommender is None or recommender.ranker is None:
        return {}, f"the bundle {bundle_id} is gone"
    if set(columns) != set(recommender.feature_names):
        return {}, f"the bundle {bundle_id} has other features than the answers in its name"
    if not job.work(RETRIEVERS_STAGE).exists():
        return {}, f"{job.work(RETRIEVERS_STAGE)}, which made the ranker's training rows, is gone; run `recsys train`"
    reference = _training_rows(job, recommender.ranker, shown.most_shown)
    if set(columns) != set(reference):
        return {}, "the ranker was trained on other retrievers than are configured now"
    return drift_by_feature(reference, columns), ""


def _training_rows(job: Job, ranker: Ranker, k: int) -> Columns:
    """Features of the k items that the ranker puts first in a sample of the contexts from which the last ranker
    learnt, retrieved by the retrievers that it learnt with. All of its rows would be no reference: nobody is shown rank
    200."""
    contexts = PredictionPoints.from_events(
        job.window(job.split.t2, job.split.end), most=REFERENCE_CONTEXTS, seed=job.config.ranker.seed
    )
    states = job.histories.states_at(contexts.user_id, contexts.timestamp)
    recommender = Recommender(job.catalogue, retrievers.load(job, RETRIEVERS_STAGE), None, job.config.recommender)
    timeline = ItemStatsTimeline(job.catalogue, snapshots(job.tables.events))
    parts = []
    for part in retrieve_contexts(recommender, contexts, states, job.progress("skew: training contexts")):
        features = recommender.features(states.rows(part.rows), part.candidates, timeline.as_of(part.day))
        for rows, idx in zip(features, part.candidates.item_idx, strict=True):
            present = rows[idx[: len(rows)] >= 0]
            parts.append(present[np.argsort(-ranker.score(present), kind="stable")[:k]])
    first = np.concatenate(parts)
    return {name: first[:, column] for column, name in enumerate(recommender.feature_names)}


# -- result ------------------------------------------------------------------------------------------------------------


def _result(
    comparison: Comparison, findings: list[Finding], found: dict[str, Drift], why_no_drift: str
) -> dict[str, Any]:
    def differences(of: dict[str, Any]) -> list[dict[str, Any]]:
        rows = [
            {
                "name": name,
                "answers": d.answers,
                "share": d.answers / max(comparison.compared, 1),
                "values": d.values,
                "largest": d.largest,
                "example": d.example,
            }
            for name, d in of.items()
        ]
        return sorted(rows, key=lambda row: (-row["answers"], row["name"]))

    troubled = sum(n for why, n in comparison.left_out.items() if why not in BY_DESIGN)
    shifted = [name for name, d in found.items() if d.psi > SHIFTED]
    return {
        "compared": comparison.compared,
        "values": comparison.values,
        "mismatching": comparison.mismatching,
        "share": comparison.share,
        "unranked": comparison.unranked,
        "left_out": dict(comparison.left_out.most_common()),
        "left_out_share": (troubled + comparison.unranked) / max(troubled + comparison.compared, 1),
        "bundles": dict(comparison.bundles.most_common()),
        "days_behind": {str(days): n for days, n in sorted(comparison.days_behind.items())},
        "features": differences(comparison.features),
        "facts": differences(comparison.facts),
        "groups": mismatching_groups(comparison),
        "verdict": verdict(findings, comparison),
        "findings": [{"says": f.says, "share": f.share} for f in findings],
        "drift": [
            {
                "name": name,
                "psi": d.psi,
                "ks": None if np.isnan(d.ks) else d.ks,
                "missing": list(d.missing),
                "edges": list(d.edges),
                "expected": list(d.expected),
                "actual": list(d.actual),
            }
            for name, d in found.items()
        ],
        "shifted": shifted,
        "no_drift_because": why_no_drift,
        "threshold_psi": SHIFTED,
    }


def failures(
    result: dict[str, Any], *, most_mismatches: float, most_left_out: float, most_psi: float | None
) -> list[str]:
    """Why the check fails, a sentence each; empty where it passes. Where little could be compared, that nothing differs
    says little."""
    out = []
    if not result["compared"]:
        out.append("no answer could be compared")
    elif result["left_out_share"] > most_left_out:
        out.append(
            f"{result['left_out_share']:.2%} of the answers have no features that could be compared, at most "
            f"{most_left_out:.2%} may"
        )
    if result["share"] > most_mismatches:
        out.append(f"{result['share']:.2%} of the answers differ, at most {most_mismatches:.2%} may")
    if most_psi is not None and (high := [d for d in result["drift"] if d["psi"] > most_psi]):
        out.append(
            f"{len(high)} features have a PSI above {most_psi:g}, first {high[0]['name']} with {high[0]['psi']:.2f}"
        )
    if most_psi is not None and not result["drift"]:
        out.append(f"distributions could not be compared: {result['no_drift_because']}")
    return out
