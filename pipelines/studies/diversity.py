"""What variety costs: the test window replayed for several degrees of the diversity re-rank.

Lists have the length that is shown, because the pool that a re-rank chooses from grows with it. No setting is chosen
from the result: it is of the test window.
"""

from typing import Final

import numpy as np

from pipelines.bundles import evaluation_bundle
from pipelines.pipeline import Pipeline
from recsys.errors import DataError
from recsys.evaluation.about import about
from recsys.evaluation.beyond_accuracy import Items, Shown
from recsys.evaluation.bootstrap import LEVEL, bootstrap_means_of_each, rank_difference
from recsys.evaluation.cohorts import Trained
from recsys.evaluation.metrics import event_values, rank_in
from recsys.evaluation.replay import test_events
from recsys.evaluation.study import Study, StudyRun, write_study
from recsys.evaluation.tables import Table, estimate, number
from recsys.features.item_stats import day_of
from recsys.features.prediction_points import PredictionPoints
from recsys.recommender import RequestContext

DIVERSITIES: Final = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
K: Final = 10
HEADER: Final = (
    *("Diversity", "NDCG@10", "Difference", "HR@10"),
    *("Intra-list diversity", "Novelty@10, bits", "Coverage@10"),
)


def run(pipeline: Pipeline) -> str:
    """Measure every degree and write the table to the reports; the Markdown.

    Raises MissingArtefactError where nothing was trained, DataError where no item has a genre.
    """
    data, bundle = pipeline.data, evaluation_bundle(pipeline.home, pipeline.data)
    recommender = bundle.recommender
    if not recommender.catalogue.genres.any():
        raise DataError(f"No item of {pipeline.home.name} has a genre, so there is no diversity to measure.")
    contexts = PredictionPoints.from_events(test_events(data.tables.events, bundle.facts.trained_through))
    trained = Trained.through(data.histories, bundle.facts.trained_through)
    items = Items(recommender.catalogue, trained.raters, len(trained.user_ids))
    shown = [Shown(items) for _ in DIVERSITIES]
    lists = np.full((len(DIVERSITIES), len(contexts), K), -1, dtype=np.int64)
    progress, done = pipeline.progress("diversity: contexts replayed"), 0
    for rows in contexts.batches_by_day():
        states = data.histories.states_at(contexts.user_id[rows], contexts.timestamp[rows])
        context = RequestContext(data.timeline.as_of(int(day_of(contexts.timestamp[rows[0]]))))
        for d, diversity in enumerate(DIVERSITIES):
            lists[d, rows] = recommender.recommend(states, context, K, diversity=diversity).item_ids
            shown[d].add(recommender.catalogue.to_idx(lists[d, rows]))
        done += len(rows)
        progress(done, len(contexts))
    user_id = contexts.user_id[contexts.event_context]
    ranks = [rank_in(of_degree[contexts.event_context], contexts.event_item_id) for of_degree in lists]
    means = bootstrap_means_of_each(user_id, (event_values(rank, ("ndcg@10", "hr@10")) for rank in ranks))
    table = []
    for d, (degree, cell) in enumerate(zip(DIVERSITIES, means, strict=True)):
        (ndcg, hr), beyond = cell.estimates, shown[d].measure()
        difference = rank_difference(user_id, ranks[d], ranks[0])["ndcg@10"]
        table.append(
            [
                f"{degree:g}",
                estimate(ndcg, cell.n_users),
                estimate(difference, cell.n_users, "+.4f") if degree else "",
                number(hr.mean),
                number(beyond.diversity, ".3f"),
                number(beyond.novelty, ".2f"),
                number(beyond.coverage),
            ]
        )
    text = (
        f"# Diversity\n\nData: {data.tables.info.label}. The test window replayed with the re-rank by maximal marginal "
        f"relevance: {means[0].n_events:,} events of {means[0].n_users:,} users at {len(contexts):,} moments. "
        f"In brackets: {LEVEL:.0%} bootstrap interval over users. Difference: NDCG@10 minus that of diversity 0, on "
        "the same events. Intra-list diversity: mean of 1 - cosine of genre vectors over the pairs of a list. Novelty: "
        "mean of -log2 of the share of users who rated the item up to T2.\n\n"
        f"{Table(HEADER, table).markdown()}"
    )
    study = Study(StudyRun(data.tables.info, about("recsys diversity"), bundle.facts.bundle_id))
    return write_study(pipeline.home.reports, "diversity", study, text)
