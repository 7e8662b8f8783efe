"""What each part is worth: the ranker fitted again without one retriever or one group of features, and replayed.

Without a retriever its candidates are gone and so are its features; what else reads its tables is 0: the similarity
features without the two-tower model, `covisitation_last` without co-visitation. Without a group of features the table
loses columns. No retriever is fitted again. No setting is chosen from the result: it is of the test window.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pipelines import rankers
from pipelines.bundles import evaluation_bundle
from pipelines.config import PipelineConfig
from pipelines.pipeline import Pipeline
from recsys.arrays import FloatArray, IntArray
from recsys.bundle import Bundle
from recsys.columns import USER_ID
from recsys.errors import BundleError, MissingArtefactError
from recsys.evaluation import plots
from recsys.evaluation.about import about
from recsys.evaluation.bootstrap import LEVEL, Estimate, PairedDifference, bootstrap_means, rank_difference
from recsys.evaluation.metrics import event_values
from recsys.evaluation.replay import FULL_SYSTEM, replay, test_events
from recsys.evaluation.study import Study, StudyRun, write_study
from recsys.evaluation.tables import Table, estimate
from recsys.features.candidate import FEATURE_GROUPS
from recsys.features.item_stats import snapshots
from recsys.ranking.ranker import Ranker
from recsys.ranking.training import RankerSettings, TrainingTable, fit_boosted, joined
from recsys.recommender import Recommender

EVERYTHING: Final = "everything"
MEASURED: Final = ("ndcg@10", "hr@10", "recall@100")
COMPARED: Final = ("ndcg@10", "hr@10")


@dataclass(frozen=True)
class Variant:
    """What is left out, at most one of the two."""

    name: str
    retriever: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class AblationRow:
    """`retrieved`: share of the ranker's training events that retrieval found. `differences`: minus everything."""

    variant: Variant
    n_features: int
    trees: int
    retrieved: float
    seconds: float
    n_events: int
    n_users: int
    metrics: Mapping[str, Estimate]
    differences: Mapping[str, PairedDifference]


@dataclass(frozen=True)
class Ablation(Study):
    """The rows by name, everything first."""

    rows: dict[str, AblationRow]


@dataclass(frozen=True)
class PartialRanker:
    """A ranker that sees some columns of the feature matrix; `feature_names` are all of them."""

    ranker: Ranker
    feature_names: tuple[str, ...]
    columns: IntArray

    def score(self, rows: FloatArray) -> FloatArray:
        return self.ranker.score(rows[:, self.columns])


def run(pipeline: Pipeline) -> str:
    """Measure every variant and write the reports; the Markdown.

    Raises MissingArtefactError where nothing was trained or the retrievers of the ranker's windows are gone,
    BundleError where the bundle was made with settings that this code does not know.
    """
    home, data, report = pipeline.home, pipeline.data, pipeline.report
    bundle = evaluation_bundle(home, data)
    config = _as_trained(pipeline.config, bundle)
    windows = rankers.windows_t2(home.work, data.split)
    for window in windows:
        if not window.retrievers.exists():
            raise MissingArtefactError(f"{window.retrievers} is not there. Run `recsys train` first.")
    user_id = test_events(data.tables.events, bundle.facts.trained_through)[USER_ID].to_numpy()

    def table_of(retriever: str | None) -> TrainingTable:
        return joined([rankers.window_table(data, config, w, pipeline.store, report, retriever) for w in windows])

    full = table_of(None)
    all_ranks: dict[str, IntArray] = {}
    rows: dict[str, AblationRow] = {}
    retrievers = bundle.recommender.retrievers
    variants = [
        Variant(EVERYTHING),
        *(Variant(f"without {r.name}", retriever=r.name) for r in retrievers if len(retrievers) > 1),
        *(Variant(f"without features: {name}", group=name) for name in FEATURE_GROUPS),
    ]
    began = time.perf_counter()
    for done, variant in enumerate(variants, start=1):
        started = time.perf_counter()
        table = _without_group(table_of(variant.retriever) if variant.retriever else full, variant.group)
        ranker = fit_boosted(table, config.ranker, report=report)
        ranks = all_ranks[variant.name] = _replayed(pipeline, bundle, variant, ranker)
        means = bootstrap_means(user_id, event_values(ranks, MEASURED))
        now = time.perf_counter()
        rows[variant.name] = AblationRow(
            variant=variant,
            n_features=len(table.feature_names),
            trees=ranker.booster.num_trees(),
            retrieved=table.found,
            seconds=now - started,
            n_events=means.n_events,
            n_users=means.n_users,
            metrics=dict(zip(MEASURED, means.estimates, strict=True)),
            differences=rank_difference(user_id, ranks, all_ranks[EVERYTHING], COMPARED),
        )
        left = (now - began) / done * (len(variants) - done)
        report(f"ablate: {variant.name} measured, {done} of {len(variants)}, about {left:.0f} s left")
    result = Ablation(StudyRun(data.tables.info, about("recsys ablate"), bundle.facts.bundle_id), rows)
    return write_study(home.reports, "ablation", result, markdown(result), picture(result))


def _as_trained(config: PipelineConfig, bundle: Bundle) -> PipelineConfig:
    """The settings that the bundle was trained with, whatever the defaults are now."""
    try:
        ranker = RankerSettings(**bundle.facts.parameters["ranker"])
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle.facts.bundle_id} was trained with other settings than this code has ({error}). "
            "Run `recsys train` first."
        ) from error
    # Whole candidate lists are for probabilities, which are not measured here; the table is the same without them.
    return replace(config, ranker=replace(ranker, unsampled_candidates=0), recommender=bundle.recommender.settings)


def _without_group(table: TrainingTable, group: str | None) -> TrainingTable:
    if group is None:
        return table
    columns = columns_without(table.feature_names, group)
    names = tuple(table.feature_names[c] for c in columns)
    return replace(table, feature_names=names, features=table.features[:, columns])


def columns_without(names: Sequence[str], group: str) -> IntArray:
    """Positions of the features that do not belong to the group."""
    pattern = re.compile(FEATURE_GROUPS[group])
    return np.array([i for i, name in enumerate(names) if not pattern.fullmatch(name)], dtype=np.int64)


def _replayed(pipeline: Pipeline, bundle: Bundle, variant: Variant, ranker: Ranker) -> IntArray:
    """(E,) rank of every test event."""
    whole, data = bundle.recommender, pipeline.data
    kept = [retriever for retriever in whole.retrievers if retriever.name != variant.retriever]
    if variant.group is not None:
        ranker = PartialRanker(ranker, whole.feature_names, columns_without(whole.feature_names, variant.group))
    replayed = replay(
        replace(bundle, recommender=Recommender(whole.catalogue, kept, ranker, whole.settings)),
        data.histories,
        snapshots(data.tables.events),
        test_events(data.tables.events, bundle.facts.trained_through),
        leaderboard=False,
        progress=pipeline.progress("ablate: contexts replayed"),
    )
    return replayed.ranks(FULL_SYSTEM)


def markdown(result: Ablation) -> str:
    rows = []
    for name, row in result.rows.items():
        ndcg, hr = (
            "" if name == EVERYTHING else estimate(row.differences[metric], row.n_users, "+.4f") for metric in COMPARED
        )
        mean = {metric: f"{cell.mean:.4f}" for metric, cell in row.metrics.items()}
        first = estimate(row.metrics["ndcg@10"], row.n_users)
        rows.append([name, str(row.n_features), str(row.trees), first, ndcg, mean["hr@10"], hr, mean["recall@100"]])
    header = ["", "Features", "Trees", "NDCG@10", "Difference", "HR@10", "Difference", "Recall@100"]
    base = result.rows[EVERYTHING]
    return (
        f"# Ablation\n\nData: {result.run.data.label}. The ranker fitted again without one part, and every event after "
        f"T2 replayed: {base.n_events:,} events of {base.n_users:,} users. In brackets: {LEVEL:.0%} bootstrap interval "
        "over users. Difference: the row minus everything, on the same events; below 0 the part helps.\n\n"
        f"{Table(header, rows).markdown()}\n{finding(result.rows)}\n"
    )


def finding(rows: Mapping[str, AblationRow]) -> str:
    """Which parts these data show to be worth something, by NDCG@10."""
    cells = {name: row.differences["ndcg@10"] for name, row in rows.items() if name != EVERYTHING}
    falls = [f"{name} ({d.mean:+.4f})" for name, d in cells.items() if d.below_zero]
    rises = [f"{name} ({d.mean:+.4f})" for name, d in cells.items() if d.above_zero]
    rest = len(cells) - len(falls) - len(rises)
    sentences = [f"NDCG@10 {verb} {', '.join(names)}." for verb, names in (("falls", falls), ("rises", rises)) if names]
    return " ".join([*sentences, *([f"For {rest} of {len(cells)} rows the interval holds 0."] if rest else [])])


def picture(result: Ablation) -> bytes:
    """The difference in NDCG@10 of each row, with whiskers; retrievers are darker than groups of features."""
    rows = {name: row for name, row in result.rows.items() if name != EVERYTHING}
    figure, axes = plots.rows_figure([*rows], height=1.9 + 0.36 * len(rows))
    for y, row in enumerate(rows.values()):
        colour = plots.SYSTEM if row.variant.retriever else plots.SINGLE
        plots.dots(axes, [row.differences["ndcg@10"]], [y], fmt="o", color=colour, ecolor=plots.INK)
    axes.axvline(0.0, color=plots.MUTED, linewidth=1.0)
    axes.set_xlabel("difference in NDCG@10, left of 0 the part helps")
    base = result.rows[EVERYTHING]
    note = (
        f"Everything: {base.metrics['ndcg@10'].mean:.4f}. The same {base.n_events:,} test events of "
        f"{base.n_users:,} users. Whiskers: {LEVEL:.0%} bootstrap interval over users."
    )
    return plots.finished(figure, "What each part is worth", result.run.data, note)
