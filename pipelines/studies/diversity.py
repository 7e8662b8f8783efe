"""What variety costs: the test window replayed for several degrees of the diversity re-rank.

Lists have the length that is shown, because the pool that a re-rank chooses from grows with it. No setting is chosen
from the result, because it is measured on the test window.

Shapes: E events, C contexts.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pipelines.bundles import evaluation_bundle
from pipelines.pipeline import Pipeline
from pipelines.studies.reports import StudyRun, write_study
from recsys.arrays import IntArray
from recsys.bundle import Bundle
from recsys.columns import ITEM_ID, RANK, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.evaluation import plots
from recsys.evaluation.about import about
from recsys.evaluation.beyond_accuracy import BeyondAccuracy, Items, Shown
from recsys.evaluation.bootstrap import LEVEL, SEED, Estimate, bootstrap_means_of_each, paired_difference
from recsys.evaluation.cohorts import Trained
from recsys.evaluation.metrics import coverage, event_values, rank_in
from recsys.evaluation.replay import test_events
from recsys.evaluation.tables import Table, estimate, interval, number, with_facts
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.recommender import RequestContext

DIVERSITIES: Final = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
K: Final = 10


@dataclass(frozen=True)
class DiversityRow:
    """One degree; `difference` is its NDCG@10 minus that of diversity 0 on the same events."""

    diversity: float
    ndcg: Estimate
    hr: Estimate
    difference: Estimate
    coverage: float
    beyond_accuracy: BeyondAccuracy


@dataclass(frozen=True)
class DiversityStudy:
    run: StudyRun
    n_contexts: int
    n_contexts_in_window: int
    n_events: int
    n_users: int
    rows: tuple[DiversityRow, ...]


def run(pipeline: Pipeline, most: int | None = None) -> DiversityStudy:
    """Measure every degree and write the reports.

    most   at most so many moments, drawn at random with a fixed seed; None for the whole test window
    Raises MissingArtefactError where nothing was trained, DataError where no item has a genre.
    """
    bundle = evaluation_bundle(pipeline.home, pipeline.data)
    if not pipeline.data.catalogue.genres.any():
        raise DataError(f"No item of {pipeline.home.name} has a genre, so there is no diversity to measure.")
    events = test_events(pipeline.data.tables.events, bundle.facts.trained_through)
    contexts = PredictionPoints.from_events(events, most=most, seed=SEED)
    frames, shown = _replay(pipeline, bundle, contexts)
    means = bootstrap_means_of_each(
        frames[0][USER_ID].to_numpy(), (event_values(f[RANK].to_numpy(), ("ndcg@10", "hr@10")) for f in frames)
    )
    command = "recsys diversity" + (f" --contexts {most}" if most is not None else "")
    found = DiversityStudy(
        StudyRun(pipeline.data.tables.info, about(command), bundle.facts.bundle_id),
        len(contexts),
        len(PredictionPoints.from_events(events)),
        means[0].n_events,
        means[0].n_users,
        tuple(
            DiversityRow(
                diversity,
                ndcg=cell.estimates[0],
                hr=cell.estimates[1],
                difference=paired_difference(frame, frames[0])["ndcg@10"],
                coverage=coverage(np.flatnonzero(lists.times), len(pipeline.data.catalogue)),
                beyond_accuracy=lists.measure(),
            )
            for diversity, frame, cell, lists in zip(DIVERSITIES, frames, means, shown, strict=True)
        ),
    )
    write_study(pipeline.home.reports, "diversity", found, markdown(found), picture(found))
    return found


def _replay(pipeline: Pipeline, bundle: Bundle, contexts: PredictionPoints) -> tuple[list[pd.DataFrame], list[Shown]]:
    """For each of DIVERSITIES the rank of every event in its list of K (0 where it is not in it), and the lists."""
    recommender = bundle.recommender
    catalogue = recommender.catalogue
    timeline = ItemStatsTimeline(catalogue, snapshots(pipeline.data.tables.events))
    trained = Trained.through(pipeline.data.histories, bundle.facts.trained_through)
    shown = [Shown(Items(catalogue, trained.raters, len(trained.user_ids))) for _ in DIVERSITIES]
    lists = np.full((len(DIVERSITIES), len(contexts), K), -1, dtype=np.int64)
    progress, done = pipeline.progress("diversity: contexts replayed"), 0
    for rows in contexts.batches_by_day():
        states = pipeline.data.histories.states_at(contexts.user_id[rows], contexts.timestamp[rows])
        context = RequestContext(timeline.as_of(int(day_of(contexts.timestamp[rows[0]]))))
        for d, diversity in enumerate(DIVERSITIES):
            answer = recommender.recommend(states, context, K, diversity=diversity)
            lists[d, rows] = answer.item_ids
            shown[d].add(catalogue.to_idx(answer.item_ids))
        done += len(rows)
        progress(done, len(contexts))
    return [_ranks(contexts, of_degree) for of_degree in lists], shown


def _ranks(contexts: PredictionPoints, lists: IntArray) -> pd.DataFrame:
    """A row for each event, `lists` (C, K) ids."""
    return pd.DataFrame(
        {
            USER_ID: contexts.user_id[contexts.event_context],
            TIMESTAMP: contexts.timestamp[contexts.event_context],
            ITEM_ID: contexts.event_item_id,
            RANK: rank_in(lists[contexts.event_context], contexts.event_item_id),
        }
    )


def markdown(found: DiversityStudy) -> str:
    whole = found.n_contexts == found.n_contexts_in_window
    sample = "" if whole else f", a random sample of the {found.n_contexts_in_window:,} in the test window"
    header = ["Diversity", "NDCG@10", "Difference", "HR@10", "Intra-list diversity", "Novelty@10, bits", "Coverage@10"]
    rows = [
        [
            f"{row.diversity:g}",
            estimate(row.ndcg, found.n_users),
            estimate(row.difference, found.n_users, "+.4f") if row.diversity else "",
            number(row.hr.mean),
            number(row.beyond_accuracy.diversity, ".3f"),
            number(row.beyond_accuracy.novelty, ".2f"),
            number(row.coverage),
        ]
        for row in found.rows
    ]
    text = (
        f"# Diversity\n\nData: {found.run.data.label}. The test window replayed with the re-rank by maximal marginal "
        f"relevance: {found.n_events:,} events of {found.n_users:,} users at {found.n_contexts:,} moments{sample}. In "
        f"brackets: {LEVEL:.0%} bootstrap interval over users. Difference: NDCG@10 minus that of diversity 0, on the "
        "same events. Intra-list diversity: mean of 1 - cosine of genre vectors over the pairs of a list. Novelty: "
        "mean of -log2 of the share of users who rated the item up to T2.\n\n"
        f"{Table(header, rows).markdown()}\n{finding(found)}\n"
    )
    return with_facts(text, found.run.facts)


def finding(found: DiversityStudy) -> str:
    """The largest degree whose cost these data do not show."""
    free = [row for row in found.rows if row.diversity and not row.difference.below_zero]
    if not free:
        return "Every degree of diversity costs NDCG@10."
    most, first = free[-1], found.rows[0]
    return (
        f"Diversity {most.diversity:g} changes intra-list diversity from "
        f"{number(first.beyond_accuracy.diversity, '.3f')} to {number(most.beyond_accuracy.diversity, '.3f')}; these "
        f"data do not show that it costs NDCG@10 ({LEVEL:.0%} interval of the difference "
        f"{interval(most.difference, found.n_users)})."
    )


def picture(found: DiversityStudy) -> bytes:
    """NDCG@10 with whiskers against intra-list diversity, a point a degree; those without a pair are left out."""
    points = [(row.beyond_accuracy.diversity, row) for row in found.rows if row.beyond_accuracy.diversity is not None]
    figure, axes = plots.new_figure(height=4.6, foot=0.82)
    y = [row.ndcg.mean for _, row in points]
    whiskers = np.hstack([plots.whiskers(row.ndcg) for _, row in points]) if points else None
    style = {"color": plots.SYSTEM, "marker": "o", "capsize": 3, "linewidth": 1.4, "ecolor": plots.MUTED}
    axes.errorbar([x for x, _ in points], y, yerr=whiskers, **style)
    for x, row in points:
        axes.annotate(f"{row.diversity:g}", (x, row.ndcg.mean), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.set_ylim(0, max([row.ndcg.high or row.ndcg.mean for _, row in points] + [1e-9]) * 1.1)
    axes.set_xlabel("mean 1 - cosine of genre vectors over the pairs of a list", color=plots.MUTED)
    axes.set_ylabel("NDCG@10", color=plots.MUTED)
    axes.grid(color=plots.GRID)
    note = (
        f"Beside each point its diversity. {found.n_events:,} test events of {found.n_users:,} users. "
        f"Whiskers: {LEVEL:.0%} bootstrap interval over users."
    )
    data = found.run.data
    return plots.finished(figure, "What variety costs", data.label, note, synthetic=data.synthetic)
