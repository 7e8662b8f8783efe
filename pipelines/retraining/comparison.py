"""The new version against the champion, on the newest events, which neither has seen.

Compared are the challenger's *sibling*, frozen at T2, and the champion's *production* bundle, fitted through its last
event C, on the events after T2; both lists are made by the same replay, whose states and daily statistics move on.
T2 is C, or the 0.9 quantile of the events where that is later.

- T2 = C: both know the events up to the same moment and meet the same future. What differs is the recipe, the seed and
  what reached the event table late; that the challenger will go on learning through the last event is not counted in
  its favour.
- T2 > C: more than a tenth of the events came since. The challenger is fresher by (C, T2], as it will be in service,
  and neither has seen what follows.
The challenger itself, refitted through the last event, cannot be measured on anything yet: shadow and canary do that.
"""

from dataclasses import replace

from pipelines.pipeline import Pipeline
from pipelines.training_set import TrainingSet
from recsys.bundle import load_bundle
from recsys.columns import RANK
from recsys.errors import DataError
from recsys.evaluation.bootstrap import PairedDifference, paired_difference
from recsys.evaluation.replay import FULL_SYSTEM, replay, test_events
from recsys.features.histories import Histories
from recsys.features.item_stats import snapshots
from recsys.promotion_gate import NDCG
from recsys.registry import VersionInfo
from recsys.threads import limited


def with_newest_test(data: TrainingSet, champion: VersionInfo | None) -> TrainingSet:
    """The training set whose test window is what the champion has not seen. Raises DataError where it has seen all."""
    if champion is None:
        return data
    if champion.trained_through >= data.split.end:
        raise DataError(
            f"Version {champion.version} was trained through {champion.trained_through} (seconds UTC, data time) and no"
            " rating is later: there is nothing to compare a new version on."
        )
    return replace(data, cutoffs=replace(data.split, t2=max(data.split.t2, champion.trained_through)))


@limited(1)
def newest_difference(pipeline: Pipeline, challenger: VersionInfo, champion: VersionInfo) -> PairedDifference:
    """NDCG@10 of the challenger's sibling minus that of the champion. Raises ValueError where the ranks that the
    challenger kept are not of these events."""
    data = with_newest_test(pipeline.data, champion)
    bundle = load_bundle(pipeline.registry.download(champion, pipeline.home.bundles))
    catalogue = bundle.recommender.catalogue
    events = data.tables.events
    known = events[catalogue.to_idx(events["item_id"].to_numpy()) >= 0]  # movies may have come since
    replayed = replay(
        bundle,
        Histories.from_tables(catalogue, known, data.tables.users),
        snapshots(known),
        test_events(events, data.split.t2),
        leaderboard=False,
        progress=pipeline.progress("retrain: the champion's contexts replayed"),
    )
    theirs = replayed.events.assign(**{RANK: replayed.ranks(FULL_SYSTEM)})
    return paired_difference(pipeline.registry.ranks(challenger.version), theirs)[NDCG]
