"""Reliability of P(watch) and P(like) over the test window: measured, as a table, as a picture.

P(watch) is judged on the first TOP places of the answer to each test context: did the item happen in that second?
P(like) is judged on the test events whose item is among those that the ranker scored for that context: was the rating
at least `columns.LIKED_RATING`? The other events have no feature row and are counted only.

Bins hold equally many examples, in the order of the predicted probability. ECE is the mean over the examples of
|mean prediction - observed share| of their bin (Naeini et al., AAAI 2015, there with bins of equal width).

Shapes: E events of a batch, n examples, k answers.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.special import xlogy
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from recsys.arrays import BoolArray, DoubleArray, FloatArray, IntArray
from recsys.columns import LIKED_RATING
from recsys.evaluation import plots
from recsys.evaluation.bootstrap import Estimate
from recsys.evaluation.study import Study, StudyRun, write_study
from recsys.evaluation.tables import Table, number
from recsys.recommender import Recommendations

TOP: Final = 10
BINS: Final = 15
MEANING: Final = {
    "watch": f"P(watch): the item is among the user's next events; the first {TOP} places of each test context",
    "like": f"P(like): rated {LIKED_RATING:g} or more; test events whose item was among the ranked candidates",
}


@dataclass(frozen=True)
class Bin:
    """Neighbours in the order of the prediction: how many, mean prediction, observed share and its 95 % interval."""

    n: int
    mean_probability: float
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Reliability:
    """Of n probabilities; None where there is no example, `auc` also where all outcomes are the same. `*_constant`:
    the loss of the best constant."""

    n: int
    base_rate: float | None = None
    mean_probability: float | None = None
    ece: float | None = None
    log_loss: float | None = None
    log_loss_constant: float | None = None
    brier: float | None = None
    brier_constant: float | None = None
    auc: float | None = None
    bins: tuple[Bin, ...] = ()


@dataclass(frozen=True)
class Calibration(Study):
    """Both probabilities, and how many test events had no ranked item to judge P(like) on."""

    watch: Reliability
    like: Reliability
    n_events_not_ranked: int


@dataclass
class Predicted:
    """Predictions met in a replay; `observe` is what `replay` calls."""

    _watch: list[tuple[DoubleArray, BoolArray]] = field(default_factory=list)
    _like: list[tuple[DoubleArray, BoolArray]] = field(default_factory=list)
    _n_unranked: int = 0

    def observe(self, full: Recommendations, row: IntArray, item_id: IntArray, rating: FloatArray) -> None:
        """row, item_id, rating: (E,) which answer of `full` each event belongs to, and what happened."""
        hit = full.item_ids[row] == item_id[:, None]  # (E, k)
        happened = np.zeros(full.item_ids.shape, dtype=bool)
        np.logical_or.at(happened, row, hit)
        predicted = full.watch_probability[:, :TOP]
        known = ~np.isnan(predicted)
        self._watch.append((predicted[known].astype(np.float64), happened[:, :TOP][known]))
        shown = np.where(hit.any(axis=1), full.like_probability[row, hit.argmax(axis=1)], np.nan)
        ranked = ~np.isnan(shown)
        self._like.append((shown[ranked].astype(np.float64), rating[ranked] >= LIKED_RATING))
        self._n_unranked += int((~ranked).sum())

    def measured(self, run: StudyRun) -> Calibration:
        none = (np.empty(0), np.empty(0, dtype=bool))
        watch, like = (
            reliability(*(np.concatenate(arrays) for arrays in zip(*parts, none, strict=True)))
            for parts in (self._watch, self._like)
        )
        return Calibration(run, watch, like, self._n_unranked)


def reliability(predicted: DoubleArray, happened: BoolArray) -> Reliability:
    """(n,) probabilities against (n,) outcomes.

    >>> found = reliability(np.array([0.1, 0.1, 0.8, 0.8]), np.array([False, False, True, False]))
    >>> round(found.base_rate, 4), round(found.brier, 4), round(found.auc, 4)
    (0.25, 0.175, 0.8333)
    """
    n = len(predicted)
    if n == 0:
        return Reliability(0)
    bins = equal_mass_bins(predicted, happened)
    base = float(happened.mean())
    return Reliability(
        n=n,
        base_rate=base,
        mean_probability=float(predicted.mean()),
        ece=sum(b.n * abs(b.mean_probability - b.share) for b in bins) / n,
        log_loss=float(log_loss(happened, predicted, labels=[False, True])),
        log_loss_constant=float(-xlogy(base, base) - xlogy(1 - base, 1 - base)),
        brier=float(brier_score_loss(happened, predicted, pos_label=True)),
        brier_constant=base * (1 - base),
        auc=float(roc_auc_score(happened, predicted)) if 0 < base < 1 else None,
        bins=bins,
    )


def equal_mass_bins(predicted: DoubleArray, happened: BoolArray, bins: int = BINS) -> tuple[Bin, ...]:
    """Up to `bins` groups in the order of the prediction, as even as n allows, ties in the order given."""
    out = []
    for part in np.array_split(np.argsort(predicted, kind="stable"), min(bins, len(predicted))):
        count = int(happened[part].sum())
        low, high = binomtest(count, len(part)).proportion_ci(method="wilson")
        out.append(Bin(len(part), float(predicted[part].mean()), count / len(part), float(low), float(high)))
    return tuple(out)


def write_calibration(folder: Path, found: Calibration) -> bytes:
    """Write `calibration.json`, `.md` and `.png` into `folder`; returns the picture."""
    picture = calibration_png(found)
    write_study(folder, "calibration", found, calibration_markdown(found), picture)
    return picture


def calibration_markdown(found: Calibration) -> str:
    """One table for both probabilities, then the bins of each."""
    parts = {"watch": found.watch, "like": found.like}
    losses = ("Log loss", "of the constant", "Brier", "of the constant")
    rows = [
        [
            f"P({name})",
            f"{m.n:,}",
            *(number(value) for value in (m.mean_probability, m.base_rate, m.ece)),
            *(number(v, ".5f") for v in (m.log_loss, m.log_loss_constant, m.brier, m.brier_constant)),
            number(m.auc),
        ]
        for name, m in parts.items()
    ]
    table = Table(["Probability", "Examples", "Mean predicted", "Observed", "ECE", *losses, "AUC"], rows)
    text = (
        f"# Calibration on {found.run.data.label}\n\n"
        f"ECE over {BINS} bins of equal size. The constant is the observed share of the same examples.\n"
        f"P(like) is not judged on the {found.n_events_not_ranked:,} test events whose item was not ranked.\n\n"
        f"{table.markdown()}"
    )
    for name, m in parts.items():
        rows = [
            [f"{b.n:,}", number(b.mean_probability), number(b.share), f"{b.low:.4f} to {b.high:.4f}"] for b in m.bins
        ]
        bins = Table(["Examples", "Mean predicted", "Observed", "95 % interval"], rows)
        text += f"\n## {MEANING[name]}\n\n{bins.markdown()}"
    return text


def calibration_png(found: Calibration) -> bytes:
    """Observed share against predicted probability, a panel each; below, how many examples lie where."""
    figure, first = plots.new_figure(height=5.4)
    figure.delaxes(first)
    _panel(figure, 0.085, "P(watch)", found.watch)
    _panel(figure, 0.575, "P(like)", found.like)
    note = f"{BINS} bins of equal size. Whiskers: 95 % interval of the observed share. Dashed: perfect calibration."
    return plots.finished(figure, "Calibration", found.run.data, note)


def _panel(figure: Any, left: float, name: str, m: Reliability) -> None:
    axes = figure.add_axes((left, 0.3, 0.4, 0.5))
    counts = figure.add_axes((left, 0.13, 0.4, 0.1), sharex=axes)
    x = [b.mean_probability for b in m.bins]
    top = min(1.0, 1.08 * max([max(b.high, b.mean_probability) for b in m.bins] + [1e-6]))
    axes.plot([0, top], [0, top], color=plots.MUTED, linewidth=1, linestyle="--")
    if m.bins:
        shares = [Estimate(b.share, b.low, b.high) for b in m.bins]
        style = {"fmt": "o-", "color": plots.SYSTEM, "ecolor": plots.SINGLE, "markersize": 4, "capsize": 2}
        plots.dots(axes, shares, x, upright=True, **style)
        counts.bar(x, [b.n for b in m.bins], width=top * 0.012, color=plots.SINGLE)
    else:
        axes.text(top / 2, top / 2, "not measured", ha="center", color=plots.MUTED, style="italic")
    title = f"{name}: ECE {m.ece:.4f}, {m.n:,} examples" if m.bins else name
    axes.set_title(title, fontsize=10, color=plots.INK, loc="left")
    axes.set(xlim=(0, top), ylim=(0, top))
    axes.set_ylabel("observed share", color=plots.MUTED, fontsize=9)
    counts.set_ylabel("examples", color=plots.MUTED, fontsize=9)
    counts.set_xlabel("predicted probability", color=plots.MUTED, fontsize=9)
    for part in (axes, counts):
        part.grid(color=plots.GRID)
        part.set_axisbelow(True)
        part.tick_params(colors=plots.MUTED, labelsize=8, length=0)
        part.spines[:].set_color(plots.GRID)
