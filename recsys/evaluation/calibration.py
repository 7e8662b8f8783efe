"""Do the probabilities keep their word: reliability of P(watch) and P(like) over the test window.

Stage: evaluate. In: the full system's answers in the replay, and what happened then. Out: one plain dict, written as
`calibration.json`, a table, a picture. Absent: fitting (`recsys.ranking.calibration_training`), replaying (`replay`).

P(watch) is judged on the first TOP places of the answer to each test context, once a context: did the item happen in
that second? P(like) is judged on the test events whose item is among those that the ranker saw for that context: was
the rating at least `columns.LIKED_RATING`? The others have no feature row; the dict counts them.

Bins hold equally many examples, in the order of the predicted probability. ECE is the mean over the examples of
|mean prediction - observed share| of their bin (M. Naeini and others, Obtaining Well Calibrated Probabilities Using
Bayesian Binning, AAAI 2015, there with bins of equal width). The constant that losses are compared with is the observed
share of the same examples: no constant does better on them.

Shapes: B contexts of a batch, E events of it, n examples, k answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.special import xlogy
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from recsys.arrays import BoolArray, DoubleArray, IntArray
from recsys.atomic_io import replacing_file, write_json
from recsys.columns import LIKED_RATING
from recsys.evaluation import plots
from recsys.evaluation.tables import with_facts
from recsys.features.prediction_points import PredictionPoints
from recsys.recommender import Recommendations

TOP: Final = 10
BINS: Final = 15
WATCH, LIKE = "watch", "like"
SAYS: Final = {
    WATCH: f"P(watch): the item is among the user's next events; the first {TOP} places of each test context",
    LIKE: f"P(like): rated {LIKED_RATING:g} or more; test events whose item was among the ranked candidates",
}


@dataclass
class Predicted:
    """Predictions met in a replay; `observe` is what `replay` calls."""

    _watch: list[tuple[DoubleArray, BoolArray]] = field(default_factory=list)
    _like: list[tuple[DoubleArray, BoolArray]] = field(default_factory=list)
    _n_unranked: int = 0
    _by_context: tuple[PredictionPoints, IntArray, IntArray] | None = None

    def observe(self, full: Recommendations, rows: IntArray, contexts: PredictionPoints) -> None:
        """Row r of `full` answers context `rows[r]`."""
        events, row = self._events_of(rows, contexts)
        hit = full.item_ids[row] == contexts.event_item_id[events, None]  # (E, k)
        happened = np.zeros(full.item_ids.shape, dtype=bool)
        np.logical_or.at(happened, row, hit)
        predicted = full.watch_probability[:, :TOP]
        known = ~np.isnan(predicted)
        self._watch.append((predicted[known].astype(np.float64), happened[:, :TOP][known]))
        shown = np.where(hit.any(axis=1), full.like_probability[row, hit.argmax(axis=1)], np.nan)
        ranked = ~np.isnan(shown)
        liked = contexts.event_rating[events] >= LIKED_RATING
        self._like.append((shown[ranked].astype(np.float64), liked[ranked]))
        self._n_unranked += int((~ranked).sum())

    def _events_of(self, rows: IntArray, contexts: PredictionPoints) -> tuple[IntArray, IntArray]:
        """(E,) the events of these contexts, and for each the place of its context in `rows`."""
        if self._by_context is None or self._by_context[0] is not contexts:
            order = np.argsort(contexts.event_context, kind="stable")
            starts = np.searchsorted(contexts.event_context[order], np.arange(len(contexts) + 1))
            self._by_context = contexts, order, starts
        _, order, starts = self._by_context
        events = [order[starts[c] : starts[c + 1]] for c in rows]
        row = np.repeat(np.arange(len(rows)), [len(part) for part in events])
        return np.concatenate([*events, np.empty(0, dtype=np.int64)]).astype(np.int64), row

    def measured(self, data: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        """What `calibration.json` holds. `data` is the leaderboard's: which data set this was; `about` is the run."""
        none = (np.empty(0), np.empty(0, dtype=bool))
        parts = {WATCH: [*self._watch, none], LIKE: [*self._like, none]}
        joined = {name: [np.concatenate(arrays) for arrays in zip(*p, strict=True)] for name, p in parts.items()}
        return {
            "data": dict(data),
            "about": dict(about),
            "says": SAYS,
            "top": TOP,
            "liked_rating": LIKED_RATING,
            "n_events_not_ranked": self._n_unranked,
            **{name: reliability(predicted, happened) for name, (predicted, happened) in joined.items()},
        }


def reliability(predicted: DoubleArray, happened: BoolArray) -> dict[str, Any]:
    """(n,) probabilities against (n,) outcomes: ECE, log loss, Brier score, AUC, the same for the best constant, and
    the bins. Without examples every measure is None; AUC also where all outcomes are the same.

    >>> found = reliability(np.array([0.1, 0.1, 0.8, 0.8]), np.array([False, False, True, False]))
    >>> round(found["base_rate"], 4), round(found["brier"], 4), found["auc"].__round__(4)
    (0.25, 0.175, 0.8333)
    """
    n = len(predicted)
    if n == 0:
        names = ("base_rate", "mean_probability", "ece", "log_loss", "log_loss_constant", "brier", "brier_constant")
        return {"n": 0, **dict.fromkeys((*names, "auc")), "bins": []}
    bins = equal_mass_bins(predicted, happened)
    base = float(happened.mean())
    return {
        "n": n,
        "base_rate": base,
        "mean_probability": float(predicted.mean()),
        "ece": sum(b["n"] * abs(b["mean_probability"] - b["share"]) for b in bins) / n,
        "log_loss": float(log_loss(happened, predicted, labels=[False, True])),
        "log_loss_constant": float(-xlogy(base, base) - xlogy(1 - base, 1 - base)),
        "brier": float(brier_score_loss(happened, predicted, pos_label=True)),
        "brier_constant": base * (1 - base),
        "auc": float(roc_auc_score(happened, predicted)) if 0 < base < 1 else None,
        "bins": bins,
    }


def equal_mass_bins(predicted: DoubleArray, happened: BoolArray, bins: int = BINS) -> list[dict[str, float]]:
    """Up to `bins` groups of neighbours in the order of the prediction, as even as n allows, ties in the order given;
    each with its size, mean prediction, observed share and that share's 95 % Wilson interval.

    Source of the interval: E. Wilson, Probable Inference, the Law of Succession, JASA 1927.
    """
    order = np.argsort(predicted, kind="stable")
    out = []
    for part in np.array_split(order, min(bins, len(order))):
        n, share, z = len(part), float(happened[part].mean()), 1.959964
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
        mean = float(predicted[part].mean())
        out.append({"n": n, "mean_probability": mean, "share": share, "low": centre - half, "high": centre + half})
    return out


def write_calibration(folder: Path, measured: Mapping[str, Any]) -> bytes:
    """Write `calibration.json`, `.md` and `.png` into `folder`; returns the picture."""
    write_json(folder / "calibration.json", measured)
    picture = calibration_png(measured)
    with replacing_file(folder / "calibration.md") as beside:
        beside.write_text(calibration_markdown(measured), encoding="utf-8")
    with replacing_file(folder / "calibration.png") as beside:
        beside.write_bytes(picture)
    return picture


def calibration_markdown(measured: Mapping[str, Any]) -> str:
    """One table for both probabilities, then the bins of each."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        f"# Calibration on {measured['data']['label']}",
        "",
        f"ECE over {BINS} bins of equal size. The constant is the observed share of the same examples.",
        f"P(like) is not judged on the {measured['n_events_not_ranked']:,} test events whose item was not ranked.",
        "",
        "| Probability | Examples | Mean predicted | Observed | ECE | Log loss | of the constant | Brier "
        "| of the constant | AUC |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in (WATCH, LIKE):
        m = measured[name]
        shown = (
            (m["mean_probability"], ".4f"),
            (m["base_rate"], ".4f"),
            (m["ece"], ".4f"),
            (m["log_loss"], ".5f"),
            (m["log_loss_constant"], ".5f"),
            (m["brier"], ".5f"),
            (m["brier_constant"], ".5f"),
            (m["auc"], ".4f"),
        )
        lines.append(f"| P({name}) | {m['n']:,} | " + " | ".join(cell(*pair) for pair in shown) + " |")
    for name in (WATCH, LIKE):
        lines += ["", f"## {SAYS[name]}", "", "| Examples | Mean predicted | Observed | 95 % interval |"]
        lines += ["|--:|--:|--:|--:|"]
        lines += [
            f"| {b['n']:,} | {b['mean_probability']:.4f} | {b['share']:.4f} | {b['low']:.4f} to {b['high']:.4f} |"
            for b in measured[name]["bins"]
        ]
    return with_facts("\n".join(lines) + "\n", measured["about"])


def calibration_png(measured: Mapping[str, Any]) -> bytes:
    """Observed share against predicted probability, a panel each; below, how many examples lie where."""
    figure, first = plots.new_figure(height=5.4, foot=0.6)
    figure.delaxes(first)
    for column, name in enumerate((WATCH, LIKE)):
        _panel(figure, 0.085 + 0.49 * column, name, measured[name])
    note = (
        f"{BINS} bins of equal size, whiskers: 95 % interval of the observed share. On the diagonal a promise is kept."
    )
    plots.words(figure, "Do the probabilities keep their word?", measured["data"], note)
    return plots.png(figure)


def _panel(figure: Any, left: float, name: str, m: Mapping[str, Any]) -> None:
    axes = figure.add_axes((left, 0.3, 0.4, 0.5))
    counts = figure.add_axes((left, 0.13, 0.4, 0.1), sharex=axes)
    bins = m["bins"]
    top = min(1.0, 1.08 * max([b["high"] for b in bins] + [b["mean_probability"] for b in bins] + [1e-6]))
    axes.plot([0, top], [0, top], color=plots.MUTED, linewidth=1, linestyle="--")
    if bins:
        x, y = np.array([b["mean_probability"] for b in bins]), np.array([b["share"] for b in bins])
        whiskers = np.maximum([y - [b["low"] for b in bins], [b["high"] for b in bins] - y], 0.0)
        axes.errorbar(x, y, yerr=whiskers, fmt="o-", color=plots.SYSTEM, ecolor=plots.SINGLE, markersize=4, capsize=2)
        counts.bar(x, [b["n"] for b in bins], width=top * 0.012, color=plots.SINGLE)
        title = f"P({name}): ECE {m['ece']:.4f}, {m['n']:,} examples"
    else:
        axes.text(top / 2, top / 2, "not measured", ha="center", color=plots.MUTED, style="italic")
        title = f"P({name})"
    axes.set_title(title, fontsize=10, color=plots.INK, loc="left")
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_ylabel("observed share", color=plots.MUTED, fontsize=9)
    counts.set_ylabel("n a bin", color=plots.MUTED, fontsize=9)
    counts.set_xlabel("predicted probability", color=plots.MUTED, fontsize=9)
    for part in (axes, counts):
        part.grid(color=plots.GRID)
        part.set_axisbelow(True)
        part.tick_params(colors=plots.MUTED, labelsize=8, length=0)
        for side in part.spines.values():
            side.set_color(plots.GRID)
