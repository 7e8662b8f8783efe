"""What each part is worth: the ranker fitted again without one retriever or one group of features, and replayed.

Stage: a study beside the pipeline. In: the retrievers fitted through T0 and T1, Feast, the evaluation bundle, every
event after T2. Out: `reports/ablation.json`, `.md`, `.png`. Absent: choices made from it (the test window decides
nothing),
and fitting retrievers: each was fitted by itself, so that the others stay as they are without it.

Without a retriever its candidates are gone and so are its features. What else reads its tables is held at 0: the
similarity features without the two-tower model, `covisitation_last` without co-visitation. The candidates are then
others, so the ranker's table is built again. Without a group of features the table stays and loses columns.

A finished row is kept in `ablation.json` under the identity of the run: the bundle, the retrievers of the ranker's
windows, the code, the settings. A run that was stopped goes on with the rows that it lacks.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from pipelines import rankers
from pipelines.evaluation import evaluation_bundle
from pipelines.job import Job, code_fingerprint
from recsys.arrays import FloatArray, IntArray
from recsys.atomic_io import fingerprint_files, fingerprint_value, read_json, replacing_file, write_json
from recsys.bundle import Bundle
from recsys.columns import RANK, USER_ID
from recsys.errors import BundleError, MissingArtefactError
from recsys.evaluation import plots
from recsys.evaluation.about import about
from recsys.evaluation.bootstrap import EVENT_KEY, LEVEL, N_BOOT, SEED, bootstrap_means, paired_difference
from recsys.evaluation.leaderboard import data_of
from recsys.evaluation.metrics import LABELS, event_values
from recsys.evaluation.replay import replay, test_events
from recsys.evaluation.tables import BUNDLE, with_facts
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
    """A row of the study: what is left out, at most one of the two."""

    name: str
    retriever: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Blinkered:
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


def run(job: Job, *, force: bool = False) -> dict[str, Any]:
    """Measure what is not yet measured, write table and picture, and return what `ablation.json` holds.

    `force` forgets the rows of an earlier run. Raises MissingArtefactError where nothing was trained or the retrievers
    of the ranker's windows are gone, BundleError where the bundle was made with settings that this code does not know.
    """
    bundle = evaluation_bundle(job)
    study = _Study(_as_trained(job, bundle), bundle, force)
    # The rows that share the full table come first, so that it is built once and can be dropped then.
    missing = [variant for variant in study.variants if variant.name not in study.rows]
    pending = sorted(missing, key=lambda variant: variant.retriever is not None)
    started = time.perf_counter()
    for done, variant in enumerate(pending):
        study.measure(variant)
        left = (time.perf_counter() - started) / (done + 1) * (len(pending) - done - 1)
        job.report(f"ablate: {variant.name} measured, {done + 1} of {len(pending)}, about {left:.0f} s left")
    result = study.result()
    with replacing_file(job.home.reports / "ablation.md") as beside:
        beside.write_text(markdown(result), encoding="utf-8")
    with replacing_file(job.home.reports / "ablation.png") as beside:
        beside.write_bytes(picture(result))
    return result


def _as_trained(job: Job, bundle: Bundle) -> Job:
    """The job with the settings that the bundle was trained with, whatever the defaults are now."""
    for stage, _, _ in rankers.windows_t2(job):
        if not job.work(stage).exists():
            raise MissingArtefactError(f"{job.work(stage)} is not there. Run `recsys train` first.")
    try:
        ranker = RankerSettings(**bundle.facts.parameters["ranker"])
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle.facts.bundle_id} was trained with other settings than this code has ({error}). "
            "Run `recsys train` first."
        ) from error
    # Whole candidate lists are for probabilities, which are not measured here; the table is the same without them.
    ranker = replace(ranker, unsampled_candidates=0)
    return replace(job, config=replace(job.config, ranker=ranker, recommender=bundle.recommender.settings))


class _Study:
    """One run: its rows so far, and what several of them need."""

    def __init__(self, job: Job, bundle: Bundle, force: bool) -> None:
        self.job, self.bundle = job, bundle
        self.variants = variants([retriever.name for retriever in bundle.recommender.retrievers])
        self.rows: dict[str, dict[str, Any]] = {}
        self._snapshots = snapshots(job.tables.events)
        self._events = test_events(job.tables.events, bundle.facts.trained_through)
        self._full: TrainingTable | None = None
        settings = [asdict(job.config.ranker), asdict(job.config.recommender)]
        retrievers = [_digest(job.work(stage)) for stage, _, _ in rankers.windows_t2(job)]
        self._key = fingerprint_value([bundle.facts.bundle_id, retrievers, code_fingerprint(), settings])
        self._about = about("recsys ablate")
        self._json = job.home.reports / "ablation.json"
        # ranks of every event with everything, which each row is compared with
        self._ranks = job.work(f"ablation.{self._key[:12]}.parquet")
        for other in job.home.work.glob("ablation.*.parquet"):
            if other != self._ranks:
                other.unlink()
        if not force and self._json.exists() and self._ranks.exists():
            stored = read_json(self._json)
            if stored["key"] == self._key:
                self.rows = stored["rows"]
                if len(self.rows) == len(self.variants):  # nothing is left to measure
                    self._about = stored["about"]

    def measure(self, variant: Variant) -> None:
        """Fit, replay, compare and keep one row."""
        started = time.perf_counter()
        self.job.report(f"ablate: {variant.name}")
        table = self._table(variant)
        ranker = fit_boosted(table, self.job.config.ranker, report=self.job.report)
        frame = self._replay(variant, ranker)
        if variant.name == EVERYTHING:
            with replacing_file(self._ranks) as beside:
                frame.to_parquet(beside, index=False)
        found = bootstrap_means(frame[USER_ID].to_numpy(), event_values(frame[RANK].to_numpy(), MEASURED))
        differences = paired_difference(frame, pd.read_parquet(self._ranks), COMPARED)
        self.rows[variant.name] = {
            **asdict(variant),
            "n_features": len(table.feature_names),
            "trees": ranker.booster.num_trees(),
            "retrieved": table.found,
            "seconds": time.perf_counter() - started,
            "n_events": found.n_events,
            "n_users": found.n_users,
            "metrics": {
                name: {"mean": float(found.mean[m]), "low": float(found.low[m]), "high": float(found.high[m])}
                for m, name in enumerate(MEASURED)
            },
            "differences": {name: asdict(difference) for name, difference in differences.items()},
        }
        write_json(self._json, self.result())

    def result(self) -> dict[str, Any]:
        """What is written and drawn; `order` is that of the table, `rows` are those measured so far."""
        return {
            "key": self._key,
            "data": data_of(self.job.tables.info),
            "bundle_id": self.bundle.facts.bundle_id,
            "about": self._about,
            "bootstrap": {"n_boot": N_BOOT, "seed": SEED, "level": LEVEL},
            "order": [variant.name for variant in self.variants],
            "rows": self.rows,
        }

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
        windows = rankers.windows_t2(self.job)
        return joined([rankers.window_table(self.job, "ablate", *window, without=without) for window in windows])

    def _replay(self, variant: Variant, ranker: Ranker) -> pd.DataFrame:
        """Key and rank of every test event."""
        whole = self.bundle.recommender
        kept = [retriever for retriever in whole.retrievers if retriever.name != variant.retriever]
        if variant.group is not None:
            ranker = Blinkered(ranker, whole.feature_names, columns_without(whole.feature_names, variant.group))
        recommender = Recommender(whole.catalogue, kept, ranker, whole.settings)
        (full,) = replay(
            replace(self.bundle, recommender=recommender),
            self.job.histories,
            self._snapshots,
            self._events,
            leaderboard=False,
            progress=self.job.progress("ablate: contexts replayed"),
        )
        return full.frame[[*EVENT_KEY, RANK]]


def _digest(folder: Path) -> str:
    """Of the names and bytes of every file below."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return fingerprint_value(sorted([str(p.relative_to(folder)), fingerprint_files([p])] for p in files))


def columns_without(names: Sequence[str], group: str) -> IntArray:
    """Positions of the features that do not belong to the group."""
    pattern = re.compile(FEATURE_GROUPS[group])
    return np.array([i for i, name in enumerate(names) if not pattern.fullmatch(name)], dtype=np.int64)


def markdown(result: dict[str, Any]) -> str:
    """A row for each variant; differences are against everything on the same events."""
    rows = [result["rows"][name] for name in result["order"]]
    level = f"{result['bootstrap']['level']:.0%}"
    lines = [
        "# Ablation",
        "",
        f"Data: {result['data']['label']}. The ranker fitted again without one part, and every event after T2 "
        f"replayed: {rows[0]['n_events']:,} events of {rows[0]['n_users']:,} users. In brackets: {level} bootstrap "
        "interval over users. Difference: the row minus everything, on the same events; below 0 the part helps.",
        "",
        "| | Features | Trees | NDCG@10 | Difference | HR@10 | Difference | Recall@100 |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [row["name"], f"{row['n_features']}", f"{row['trees']}"]
        for name in MEASURED:
            cell, minus = row["metrics"][name], row["differences"].get(name)
            interval = f" [{cell['low']:.4f}, {cell['high']:.4f}]" if name == "ndcg@10" else ""
            cells.append(f"{cell['mean']:.4f}{interval}")
            if minus is not None:
                same = row["name"] == EVERYTHING
                cells.append("" if same else f"{minus['mean']:+.4f} [{minus['low']:+.4f}, {minus['high']:+.4f}]")
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join([*lines, "", finding(result)])
    return with_facts(text, {**result["about"], BUNDLE: result["bundle_id"]})


def finding(result: dict[str, Any]) -> str:
    """Which parts these data show to be worth something, by NDCG@10."""
    rows = [result["rows"][name] for name in result["order"][1:]]
    parts: dict[str, list[str]] = {"falls": [], "rises": []}
    for row in rows:
        cell = row["differences"]["ndcg@10"]
        if cell["high"] < 0 or cell["low"] > 0:
            verb = "falls" if cell["high"] < 0 else "rises"
            parts[verb].append(f"{row['name']} ({cell['mean']:+.4f})")
    told = [f"NDCG@10 {verb} {', '.join(names)}." for verb, names in parts.items() if names]
    rest = len(rows) - sum(map(len, parts.values()))
    return " ".join([*told, *([f"For {rest} of {len(rows)} rows the interval holds 0."] if rest else [])])


def picture(result: dict[str, Any]) -> bytes:
    """The difference in NDCG@10 of each row, with whiskers, from top to bottom in the order of the table."""
    rows = [result["rows"][name] for name in result["order"][1:]]
    labels = [row["name"] for row in rows]
    figure, axes = plots.new_figure(height=1.9 + 0.36 * len(rows), labels=labels, foot=0.85)
    for y, row in enumerate(rows):
        cell = row["differences"]["ndcg@10"]
        colour = plots.SYSTEM if row["retriever"] else plots.SINGLE
        axes.errorbar(cell["mean"], y, xerr=plots.whiskers(cell), fmt="o", color=colour, ecolor=plots.INK, capsize=3)
    axes.axvline(0.0, color=plots.MUTED, linewidth=1.0)
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"difference in {LABELS['ndcg@10']}, left of 0 the part helps", color=plots.MUTED)
    axes.grid(axis="x", color=plots.GRID)
    base = result["rows"][EVERYTHING]
    note = (
        f"Everything: {base['metrics']['ndcg@10']['mean']:.4f}. The same {base['n_events']:,} test events of "
        f"{base['n_users']:,} users. Whiskers: {result['bootstrap']['level']:.0%} bootstrap interval over users."
    )
    plots.words(figure, "What each part is worth", result["data"], note)
    return plots.png(figure)
