"""What variety costs: the test window replayed for several degrees of the diversity re-rank.

Stage: a study beside the pipeline. In: the evaluation bundle, every event after T2 or a sample of its moments. Out:
`reports/diversity.json`, `.md`, `.png`. Absent: the re-rank itself (`recsys.ranking.diversity`), and a choice: no
setting is made from what the test window says.

Lists have the length that is shown, because the pool that a re-rank chooses from grows with it. NDCG@10 and HR@10 need
no more.

Shapes: B contexts of a batch, E events, C contexts.
"""

from dataclasses import asdict
from typing import Any, Final

import numpy as np
import pandas as pd

from pipelines.evaluation import evaluation_bundle
from pipelines.job import Job
from recsys.arrays import IntArray
from recsys.atomic_io import replacing_file, write_json
from recsys.bundle import Bundle
from recsys.columns import ITEM_ID, RANK, TIMESTAMP, USER_ID
from recsys.errors import DataError
from recsys.evaluation import plots
from recsys.evaluation.about import about
from recsys.evaluation.beyond_accuracy import Items, Shown
from recsys.evaluation.bootstrap import LEVEL, N_BOOT, SEED, bootstrap_means_of_each, paired_difference
from recsys.evaluation.cohorts import Trained
from recsys.evaluation.leaderboard import data_of
from recsys.evaluation.metrics import LABELS, coverage, event_values, rank_in
from recsys.evaluation.replay import test_events
from recsys.evaluation.tables import BUNDLE, with_facts
from recsys.features.item_stats import ItemStatsTimeline, day_of, snapshots
from recsys.features.prediction_points import PredictionPoints
from recsys.recommender import RequestContext

DIVERSITIES: Final = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
K: Final = 10
MEASURED: Final = ("ndcg@10", "hr@10")


def run(job: Job, most: int | None = None) -> dict[str, Any]:
    """Measure every degree, write table and picture, and return what `diversity.json` holds.

    most   at most so many moments, drawn at random with a fixed seed; None for the whole test window
    Raises MissingArtefactError where nothing was trained, DataError where no item has a genre.
    """
    bundle = evaluation_bundle(job)
    if not job.catalogue.genres.any():
        raise DataError(f"No item of {job.home.name} has a genre, so there is no diversity to measure.")
    events = test_events(job.tables.events, bundle.facts.trained_through)
    contexts = PredictionPoints.from_events(events, most=most, seed=SEED)
    frames, shown = _replay(job, bundle, contexts)
    users = frames[0][USER_ID].to_numpy()
    found = bootstrap_means_of_each(users, (event_values(f[RANK].to_numpy(), MEASURED) for f in frames))
    rows = [
        {
            "diversity": diversity,
            **{
                name: {"mean": float(cell.mean[m]), "low": float(cell.low[m]), "high": float(cell.high[m])}
                for m, name in enumerate(MEASURED)
            },
            "difference": asdict(paired_difference(frame, frames[0])["ndcg@10"]),
            "coverage@10": coverage(np.flatnonzero(lists.times), len(job.catalogue)),
            "beyond_accuracy": lists.measure(),
        }
        for diversity, frame, cell, lists in zip(DIVERSITIES, frames, found, shown, strict=True)
    ]
    result = {
        "data": data_of(job.tables.info),
        "bundle_id": bundle.facts.bundle_id,
        "about": about("recsys diversity" + (f" --contexts {most}" if most is not None else "")),
        "k": K,
        "n_contexts": len(contexts),
        "n_contexts_in_window": len(PredictionPoints.from_events(events)),
        "n_events": found[0].n_events,
        "n_users": found[0].n_users,
        "bootstrap": {"n_boot": N_BOOT, "seed": SEED, "level": LEVEL},
        "rows": rows,
    }
    write_json(job.home.reports / "diversity.json", result)
    with replacing_file(job.home.reports / "diversity.md") as beside:
        beside.write_text(markdown(result), encoding="utf-8")
    with replacing_file(job.home.reports / "diversity.png") as beside:
        beside.write_bytes(picture(result))
    return result


def _replay(job: Job, bundle: Bundle, contexts: PredictionPoints) -> tuple[list[pd.DataFrame], list[Shown]]:
    """For each of DIVERSITIES the rank of every event in its list of K (0 where it is not in it), and the lists."""
    recommender = bundle.recommender
    catalogue = recommender.catalogue
    timeline = ItemStatsTimeline(catalogue, snapshots(job.tables.events))
    trained = Trained.through(job.histories, bundle.facts.trained_through)
    items = Items(catalogue, trained.raters, len(trained.user_ids))
    shown = [Shown(items) for _ in DIVERSITIES]
    lists = np.full((len(DIVERSITIES), len(contexts), K), -1, dtype=np.int64)
    tell = job.progress("diversity: contexts replayed")
    done = 0
    for rows in contexts.batches_by_day():
        states = job.histories.states_at(contexts.user_id[rows], contexts.timestamp[rows])
        context = RequestContext(timeline.as_of(int(day_of(contexts.timestamp[rows[0]]))))
        for d, diversity in enumerate(DIVERSITIES):
            answer = recommender.recommend(states, context, K, diversity=diversity)
            lists[d, rows] = answer.item_ids
            shown[d].add(catalogue.to_idx(answer.item_ids))
        done += len(rows)
        tell(done, len(contexts))
    return [_ranks(contexts, answered) for answered in lists], shown


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


def markdown(result: dict[str, Any]) -> str:
    """A row for each degree; the difference is against diversity 0 on the same events."""
    level = f"{result['bootstrap']['level']:.0%}"
    whole = result["n_contexts"] == result["n_contexts_in_window"]
    of = "" if whole else f", a random sample of the {result['n_contexts_in_window']:,} in the test window"
    lines = [
        "# Diversity",
        "",
        f"Data: {result['data']['label']}. The test window replayed with the re-rank by maximal marginal relevance: "
        f"{result['n_events']:,} events of {result['n_users']:,} users at {result['n_contexts']:,} moments{of}. In "
        f"brackets: {level} bootstrap interval over users. Difference: NDCG@10 minus that of diversity 0, on the same "
        "events. Intra-list diversity: mean of 1 - cosine of genre vectors over the pairs of a list. Novelty: mean of "
        "-log2 of the share of users who rated the item up to T2.",
        "",
        "| Diversity | NDCG@10 | Difference | HR@10 | Intra-list diversity | Novelty@10, bits | Coverage@10 |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        ndcg, minus, beyond = row["ndcg@10"], row["difference"], row["beyond_accuracy"]
        cells = [
            f"{row['diversity']:g}",
            f"{ndcg['mean']:.4f} [{ndcg['low']:.4f}, {ndcg['high']:.4f}]",
            f"{minus['mean']:+.4f} [{minus['low']:+.4f}, {minus['high']:+.4f}]" if row["diversity"] else "",
            f"{row['hr@10']['mean']:.4f}",
            _shown(beyond["diversity@10"], ".3f"),
            _shown(beyond["novelty@10"], ".2f"),
            f"{row['coverage@10']:.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join([*lines, "", finding(result)])
    return with_facts(text, {**result["about"], BUNDLE: result["bundle_id"]})


def finding(result: dict[str, Any]) -> str:
    """What the curve says, in one sentence: the largest degree that costs nothing that these data can show."""
    free = [row for row in result["rows"] if row["diversity"] and row["difference"]["high"] >= 0]
    if not free:
        return "Every degree of diversity costs NDCG@10."
    most = free[-1]
    first = result["rows"][0]["beyond_accuracy"]["diversity@10"]
    return (
        f"Diversity {most['diversity']:g} changes intra-list diversity from {_shown(first, '.3f')} to "
        f"{_shown(most['beyond_accuracy']['diversity@10'], '.3f')}; these data do not show that it costs NDCG@10 "
        f"({result['bootstrap']['level']:.0%} interval of the difference {most['difference']['low']:+.4f} to "
        f"{most['difference']['high']:+.4f})."
    )


def picture(result: dict[str, Any]) -> bytes:
    """NDCG@10 with whiskers against intra-list diversity, a point a degree; those without a pair are left out."""
    rows = [row for row in result["rows"] if row["beyond_accuracy"]["diversity@10"] is not None]
    figure, axes = plots.new_figure(height=4.6, foot=0.82)
    x = [row["beyond_accuracy"]["diversity@10"] for row in rows]
    y = [row["ndcg@10"]["mean"] for row in rows]
    whiskers = np.hstack([plots.whiskers(row["ndcg@10"]) for row in rows]) if rows else None
    axes.errorbar(x, y, yerr=whiskers, color=plots.SYSTEM, marker="o", capsize=3, linewidth=1.4, ecolor=plots.MUTED)
    for at, up, row in zip(x, y, rows, strict=True):
        words = f"{row['diversity']:g}"
        axes.annotate(words, (at, up), xytext=(6, 6), textcoords="offset points", color=plots.INK, fontsize=9)
    axes.set_ylim(0, max([row["ndcg@10"]["high"] for row in rows] + [1e-9]) * 1.1)
    axes.set_xlabel("mean 1 - cosine of genre vectors over the pairs of a list", color=plots.MUTED)
    axes.set_ylabel(LABELS["ndcg@10"], color=plots.MUTED)
    axes.grid(color=plots.GRID)
    note = (
        f"Beside each point its diversity. {result['n_events']:,} test events of {result['n_users']:,} users. "
        f"Whiskers: {result['bootstrap']['level']:.0%} bootstrap interval over users."
    )
    plots.words(figure, "What variety costs", result["data"], note)
    return plots.png(figure)


def _shown(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
