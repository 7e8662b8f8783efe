"""What each part is worth: the ranker fitted again without one retriever or one group of features, and replayed.

Without a retriever its candidates are gone and so are its features; what else reads its tables is 0: the similarity
features without the two-tower model, `covisitation_last` without co-visitation. The ranker's table is then built again.
Without a group of features the table stays and loses columns. Retrievers are not fitted again: each was fitted by
itself. No setting is chosen from the result, because it is measured on the test window.

A finished row is kept in `ablation.json` under the identity of the run: the bundle, the retrievers of the ranker's
windows, the code, the settings. A run that was stopped goes on with the rows that it lacks.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from pipelines import rankers
from pipelines.bundles import evaluation_bundle
from pipelines.code_fingerprint import code_fingerprint
from pipelines.pipeline import Pipeline
from pipelines.studies.reports import StudyRun, write_study
from recsys.arrays import FloatArray, IntArray
from recsys.atomic_io import fingerprint_files, fingerprint_value, read_json, replacing_file
from recsys.bundle import Bundle
from recsys.columns import RANK, USER_ID
from recsys.errors import BundleError, MissingArtefactError
from recsys.evaluation import plots
from recsys.evaluation.about import about
from recsys.evaluation.bootstrap import EVENT_KEY, LEVEL, Estimate, PairedDifference, bootstrap_means, paired_difference
from recsys.evaluation.metrics import event_values
from recsys.evaluation.replay import replay, test_events
from recsys.evaluation.tables import Table, estimate, with_facts
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
class Ablation:
    """The rows measured so far, by name in the order of the table; `key` is the identity of the run."""

    run: StudyRun
    key: str
    rows: Mapping[str, AblationRow]


@dataclass(frozen=True)
class PartialRanker:
    """A ranker that sees some columns of the feature matrix; `feature_names` are all of them."""

    ranker: Ranker
    feature_names: tuple[str, ...]
    columns: IntArray

    def score(self, rows: FloatArray) -> FloatArray:
        return self.ranker.score(rows[:, self.columns])


def variants(retriever_names: Sequence[str]) -> list[Variant]:
    """Everything, then without each retriever (where there is another one), then without each group of features."""
    retrievers = retriever_names if len(retriever_names) > 1 else ()
    return [
        Variant(EVERYTHING),
        *(Variant(f"without {name}", retriever=name) for name in retrievers),
        *(Variant(f"without features: {name}", group=name) for name in FEATURE_GROUPS),
    ]


def run(pipeline: Pipeline, *, force: bool = False) -> Ablation:
    """Measure what is not yet measured and write the reports. `force` forgets the rows of an earlier run.

    Raises MissingArtefactError where nothing was trained or the retrievers of the ranker's windows are gone,
    BundleError where the bundle was made with settings that this code does not know.
    """
    bundle = evaluation_bundle(pipeline.home, pipeline.data)
    study = _Study(_as_trained(pipeline, bundle), bundle, force)
    # The rows that share the full table come first, so that it is built once and can be dropped then.
    missing = [variant for variant in study.variants if variant.name not in study.rows]
    pending = sorted(missing, key=lambda variant: variant.retriever is not None)
    started = time.perf_counter()
    for done, variant in enumerate(pending, start=1):
        study.measure(variant)
        left = (time.perf_counter() - started) / done * (len(pending) - done)
        pipeline.report(f"ablate: {variant.name} measured, {done} of {len(pending)}, about {left:.0f} s left")
    found = study.result()
    write_study(pipeline.home.reports, "ablation", found, markdown(found), picture(found))
    return found


def _as_trained(pipeline: Pipeline, bundle: Bundle) -> Pipeline:
    """The pipeline with the settings that the bundle was trained with, whatever the defaults are now."""
    for window in rankers.windows_t2(pipeline.home.work, pipeline.data.split):
        if not window.retrievers.exists():
            raise MissingArtefactError(f"{window.retrievers} is not there. Run `recsys train` first.")
    try:
        ranker = RankerSettings(**bundle.facts.parameters["ranker"])
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle.facts.bundle_id} was trained with other settings than this code has ({error}). "
            "Run `recsys train` first."
        ) from error
    # Whole candidate lists are for probabilities, which are not measured here; the table is the same without them.
    ranker = replace(ranker, unsampled_candidates=0)
    return replace(pipeline, config=replace(pipeline.config, ranker=ranker, recommender=bundle.recommender.settings))


class _Study:
    """One run: its rows so far, and what several of them need."""

    def __init__(self, pipeline: Pipeline, bundle: Bundle, force: bool) -> None:
        self.pipeline, self.bundle = pipeline, bundle
        self.variants = variants([retriever.name for retriever in bundle.recommender.retrievers])
        self.rows: dict[str, AblationRow] = {}
        self._snapshots = snapshots(pipeline.data.tables.events)
        self._events = test_events(pipeline.data.tables.events, bundle.facts.trained_through)
        self._full: TrainingTable | None = None
        settings = [asdict(pipeline.config.ranker), asdict(pipeline.config.recommender)]
        saved = [
            sorted(window.retrievers.rglob("*"))
            for window in rankers.windows_t2(pipeline.home.work, pipeline.data.split)
        ]
        retrievers = [fingerprint_files(path for path in paths if path.is_file()) for paths in saved]
        self._key = fingerprint_value([bundle.facts.bundle_id, retrievers, code_fingerprint(__name__), settings])
        self._run = StudyRun(pipeline.data.tables.info, about("recsys ablate"), bundle.facts.bundle_id)
        # The ranks of every event with everything, which each row is compared with.
        self._ranks = pipeline.home.work / f"ablation.{self._key[:12]}.parquet"
        for other in pipeline.home.work.glob("ablation.*.parquet"):
            if other != self._ranks:
                other.unlink()
        stored_at = pipeline.home.reports / "ablation.json"
        if not force and stored_at.exists() and self._ranks.exists():
            stored = read_json(stored_at)
            if stored.get("key") == self._key:
                self.rows = TypeAdapter(dict[str, AblationRow]).validate_python(stored["rows"])
                if len(self.rows) == len(self.variants):  # nothing is left to measure: the date is that of the figures
                    self._run = replace(self._run, about=stored["run"]["about"])

    def measure(self, variant: Variant) -> None:
        """Fit, replay, compare and keep one row."""
        started = time.perf_counter()
        self.pipeline.report(f"ablate: {variant.name}")
        table = self._table(variant)
        ranker = fit_boosted(table, self.pipeline.config.ranker, report=self.pipeline.report)
        frame = self._replay(variant, ranker)
        if variant.name == EVERYTHING:
            with replacing_file(self._ranks) as beside:
                frame.to_parquet(beside, index=False)
        found = bootstrap_means(frame[USER_ID].to_numpy(), event_values(frame[RANK].to_numpy(), MEASURED))
        self.rows[variant.name] = AblationRow(
            variant=variant,
            n_features=len(table.feature_names),
            trees=ranker.booster.num_trees(),
            retrieved=table.found,
            seconds=time.perf_counter() - started,
            n_events=found.n_events,
            n_users=found.n_users,
            metrics=dict(zip(MEASURED, found.estimates, strict=True)),
            differences=paired_difference(frame, pd.read_parquet(self._ranks), COMPARED),
        )
        write_study(self.pipeline.home.reports, "ablation", self.result())

    def result(self) -> Ablation:
        rows = {v.name: self.rows[v.name] for v in self.variants if v.name in self.rows}
        return Ablation(self._run, self._key, rows)

    def _table(self, variant: Variant) -> TrainingTable:
        """What the ranker learns from: built again without a retriever, with fewer columns without a group."""
        if variant.retriever is not None:
            self._full = None
            return self._built(variant.retriever)
        if self._full is None:
            self._full = self._built(None)
        if variant.group is None:
            return self._full
        columns = columns_without(self._full.feature_names, variant.group)
        names = tuple(self._full.feature_names[c] for c in columns)
        return replace(self._full, feature_names=names, features=self._full.features[:, columns])

    def _built(self, without: str | None) -> TrainingTable:
        pipeline = self.pipeline
        return joined(
            [
                rankers.window_table(
                    pipeline.data,
                    window,
                    store=pipeline.store,
                    ranker=pipeline.config.ranker,
                    recommender=pipeline.config.recommender,
                    report=pipeline.report,
                    without=without,
                )
                for window in rankers.windows_t2(pipeline.home.work, pipeline.data.split)
            ]
        )

    def _replay(self, variant: Variant, ranker: Ranker) -> pd.DataFrame:
        """Key and rank of every test event."""
        whole = self.bundle.recommender
        kept = [retriever for retriever in whole.retrievers if retriever.name != variant.retriever]
        if variant.group is not None:
            ranker = PartialRanker(ranker, whole.feature_names, columns_without(whole.feature_names, variant.group))
        recommender = Recommender(whole.catalogue, kept, ranker, whole.settings)
        (full,) = replay(
            replace(self.bundle, recommender=recommender),
            self.pipeline.data.histories,
            self._snapshots,
            self._events,
            leaderboard=False,
            progress=self.pipeline.progress("ablate: contexts replayed"),
        )
        return full.frame[[*EVENT_KEY, RANK]]


def columns_without(names: Sequence[str], group: str) -> IntArray:
    """Positions of the features that do not belong to the group."""
    pattern = re.compile(FEATURE_GROUPS[group])
    return np.array([i for i, name in enumerate(names) if not pattern.fullmatch(name)], dtype=np.int64)


def markdown(found: Ablation) -> str:
    rows = []
    for name, row in found.rows.items():
        cells = [estimate(row.metrics["ndcg@10"], row.n_users), f"{row.metrics['hr@10'].mean:.4f}"]
        minus = [
            "" if name == EVERYTHING else estimate(row.differences[metric], row.n_users, "+.4f") for metric in COMPARED
        ]
        pairs = [text for pair in zip(cells, minus, strict=True) for text in pair]
        rows.append([name, str(row.n_features), str(row.trees), *pairs, f"{row.metrics['recall@100'].mean:.4f}"])
    header = ["", "Features", "Trees", "NDCG@10", "Difference", "HR@10", "Difference", "Recall@100"]
    base = found.rows[EVERYTHING]
    text = (
        f"# Ablation\n\nData: {found.run.data.label}. The ranker fitted again without one part, and every event after "
        f"T2 replayed: {base.n_events:,} events of {base.n_users:,} users. In brackets: {LEVEL:.0%} bootstrap interval "
        "over users. Difference: the row minus everything, on the same events; below 0 the part helps.\n\n"
        f"{Table(header, rows).markdown()}\n{finding(found.rows)}\n"
    )
    return with_facts(text, found.run.facts)


def finding(rows: Mapping[str, AblationRow]) -> str:
    """Which parts these data show to be worth something, by NDCG@10."""
    cells = {name: row.differences["ndcg@10"] for name, row in rows.items() if name != EVERYTHING}
    falls = [f"{name} ({d.mean:+.4f})" for name, d in cells.items() if d.below_zero]
    rises = [f"{name} ({d.mean:+.4f})" for name, d in cells.items() if d.above_zero]
    rest = len(cells) - len(falls) - len(rises)
    sentences = [f"NDCG@10 {verb} {', '.join(names)}." for verb, names in (("falls", falls), ("rises", rises)) if names]
    return " ".join([*sentences, *([f"For {rest} of {len(cells)} rows the interval holds 0."] if rest else [])])


def picture(found: Ablation) -> bytes:
    """The difference in NDCG@10 of each row, with whiskers; retrievers are darker than groups of features."""
    rows = {name: row for name, row in found.rows.items() if name != EVERYTHING}
    figure, axes = plots.new_figure(height=1.9 + 0.36 * len(rows), labels=[*rows], foot=0.85)
    for y, row in enumerate(rows.values()):
        cell, colour = row.differences["ndcg@10"], plots.SYSTEM if row.variant.retriever else plots.SINGLE
        axes.errorbar(cell.mean, y, xerr=plots.whiskers(cell), fmt="o", color=colour, ecolor=plots.INK, capsize=3)
    axes.axvline(0.0, color=plots.MUTED, linewidth=1.0)
    plots.row_labels(axes, [*rows])
    axes.set_xlabel("difference in NDCG@10, left of 0 the part helps", color=plots.MUTED)
    base, data = found.rows[EVERYTHING], found.run.data
    note = (
        f"Everything: {base.metrics['ndcg@10'].mean:.4f}. The same {base.n_events:,} test events of "
        f"{base.n_users:,} users. Whiskers: {LEVEL:.0%} bootstrap interval over users."
    )
    return plots.finished(figure, "What each part is worth", data.label, note, synthetic=data.synthetic)
