"""What variety costs: the test window replayed for several degrees of the diversity re-rank.

Lists have the length that is shown, because the pool that a re-rank chooses from grows with it. No setting is chosen
from the result, because it is measured on the test window.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipelines.bundles import evaluation_bundle
from pipelines.pipeline import Pipeline
from recsys.arrays import IntArray
from recsys.bundle import Bundle
from recsys.errors import DataError
from recsys.evaluation import plots
from recsys.evaluation.about import about
from recsys.evaluation.beyond_accuracy import BeyondAccuracy, Items, Shown
from recsys.evaluation.bootstrap import LEVEL, SEED, Estimate, bootstrap_means_of_each, rank_difference
from recsys.evaluation.cohorts import Trained
from recsys.evaluation.metrics import event_values, rank_in
from recsys.evaluation.replay import test_events
from recsys.evaluation.study import Study, StudyRun, write_study
from recsys.evaluation.tables import Table, estimate, interval, number
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
    beyond_accuracy: BeyondAccuracy


@dataclass(frozen=True)
class DiversityStudy(Study):
    n_contexts: int
    n_contexts_in_window: int
    n_events: int
    n_users: int
    rows: tuple[DiversityRow, ...]


def run(pipeline: Pipeline, most: int | None = None) -> str:
    """Measure every degree and write the reports; the Markdown.

    most   at most so many moments, drawn at random with a fixed seed; None for the whole test window
    Raises MissingArtefactError where nothing was trained, DataError where no item has a genre.
    """
    bundle = evaluation_bundle(pipeline.home, pipeline.data)
    if not bundle.recommender.catalogue.genres.any():
        raise DataError(f"No item of {pipeline.home.name} has a genre, so there is no diversity to measure.")
    events = test_events(pipeline.data.tables.events, bundle.facts.trained_through)
    contexts = PredictionPoints.from_events(events, most=most, seed=SEED)
    user_id = contexts.user_id[contexts.event_context]
    ranks, beyond = _replay(pipeline, bundle, contexts)
    means = bootstrap_means_of_each(user_id, (event_values(rank, ("ndcg@10", "hr@10")) for rank in ranks))
    command = "recsys diversity" + (f" --contexts {most}" if most is not None else "")
    rows = [
        DiversityRow(degree, *cell.estimates, rank_difference(user_id, rank, ranks[0])["ndcg@10"], of_lists)
        for degree, rank, cell, of_lists in zip(DIVERSITIES, ranks, means, beyond, strict=True)
    ]
    result = DiversityStudy(
        StudyRun(pipeline.data.tables.info, about(command), bundle.facts.bundle_id),
        len(contexts),
        len(PredictionPoints.from_events(events)),
        means[0].n_events,
        means[0].n_users,
        tuple(rows),
    )
    return write_study(pipeline.home.reports, "diversity", result, markdown(result), picture(result))


def _replay(
    pipeline: Pipeline, bundle: Bundle, contexts: PredictionPoints
) -> tuple[list[IntArray], list[BeyondAccuracy]]:
    """For each of DIVERSITIES the rank (E,) of every event in its list of K, 0 where it is not in it; and the measures
    of the lists."""
    recommender, data = bundle.recommender, pipeline.data
    timeline = ItemStatsTimeline(recommender.catalogue, snapshots(data.tables.events))
    trained = Trained.through(data.histories, bundle.facts.trained_through)
    items = Items(recommender.catalogue, trained.raters, len(trained.user_ids))
    shown = [Shown(items) for _ in DIVERSITIES]
    lists = np.full((len(DIVERSITIES), len(contexts), K), -1, dtype=np.int64)
    progress, done = pipeline.progress("diversity: contexts replayed"), 0
    for rows in contexts.batches_by_day():
        states = data.histories.states_at(contexts.user_id[rows], contexts.timestamp[rows])
        context = RequestContext(timeline.as_of(int(day_of(contexts.timestamp[rows[0]]))))
        for d, diversity in enumerate(DIVERSITIES):
            lists[d, rows] = recommender.recommend(states, context, K, diversity=diversity).item_ids
            shown[d].add(recommender.catalogue.to_idx(lists[d, rows]))
        done += len(rows)
        progress(done, len(contexts))
    ranks = [rank_in(of_degree[contexts.event_context], contexts.event_item_id) for of_degree in lists]
    return ranks, [of_degree.measure() for of_degree in shown]


def markdown(result: DiversityStudy) -> str:
    whole = result.n_contexts == result.n_contexts_in_window
    sample = "" if whole else f", a random sample of the {result.n_contexts_in_window:,} in the test window"
    header = ["Diversity", "NDCG@10", "Difference", "HR@10", "Intra-list diversity", "Novelty@10, bits", "Coverage@10"]
    rows = [
        [
            f"{row.diversity:g}",
            estimate(row.ndcg, result.n_users),
            estimate(row.difference, result.n_users, "+.4f") if row.diversity else "",
            number(row.hr.mean),
            number(row.beyond_accuracy.diversity, ".3f"),
            number(row.beyond_accuracy.novelty, ".2f"),
            number(row.beyond_accuracy.coverage),
        ]
        for row in result.rows
    ]
    return (
        f"# Diversity\n\nData: {result.run.data.label}. The test window replayed with the re-rank by maximal marginal "
        f"relevance: {result.n_events:,} events of {result.n_users:,} users at {result.n_contexts:,} moments{sample}. "
        f"In brackets: {LEVEL:.0%} bootstrap interval over users. Difference: NDCG@10 minus that of diversity 0, on "
        "the same events. Intra-list diversity: mean of 1 - cosine of genre vectors over the pairs of a list. Novelty: "
        "mean of -log2 of the share of users who rated the item up to T2.\n\n"
        f"{Table(header, rows).markdown()}\n{finding(result)}\n"
    )


def finding(result: DiversityStudy) -> str:
    """The largest degree whose cost these data do not show."""
    free = [row for row in result.rows if row.diversity and not row.difference.below_zero]
    if not free:
        return "Every degree of diversity costs NDCG@10."
    most, first = free[-1], result.rows[0]
    return (
        f"Diversity {most.diversity:g} changes intra-list diversity from "
        f"{number(first.beyond_accuracy.diversity, '.3f')} to {number(most.beyond_accuracy.diversity, '.3f')}; these "
        f"data do not show that it costs NDCG@10 ({LEVEL:.0%} interval of the difference "
        f"{interval(most.difference, result.n_users)})."
    )


def picture(result: DiversityStudy) -> bytes:
    """NDCG@10 with whiskers against intra-list diversity, a point a degree; those without a pair are left out."""
    points = [(row.beyond_accuracy.diversity, row) for row in result.rows if row.beyond_accuracy.diversity is not None]
    figure, axes = plots.new_figure(height=4.6)
    style = {"fmt": "o-", "color": plots.SYSTEM, "ecolor": plots.MUTED, "linewidth": 1.4}
    plots.dots(axes, [row.ndcg for _, row in points], [x for x, _ in points], upright=True, **style)
    for x, row in points:
        axes.annotate(f"{row.diversity:g}", (x, row.ndcg.mean), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.set_ylim(0, plots.highest(row.ndcg for _, row in points) * 1.1)
    axes.set(xlabel="mean 1 - cosine of genre vectors over the pairs of a list", ylabel="NDCG@10")
    note = (
        f"Beside each point its diversity. {result.n_events:,} test events of {result.n_users:,} users. "
        f"Whiskers: {LEVEL:.0%} bootstrap interval over users."
    )
    return plots.finished(figure, "What variety costs", result.run.data, note)
