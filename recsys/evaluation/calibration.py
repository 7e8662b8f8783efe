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
        watch = full.watch_probability[:, :TOP]
        known = ~np.isnan(watch)
        self._watch.append((watch[known].astype(np.float64), happened[:, :TOP][known]))
        like = np.where(hit.any(axis=1), full.like_probability[row, hit.argmax(axis=1)], np.nan)
        ranked = ~np.isnan(like)
        self._like.append((like[ranked].astype(np.float64), rating[ranked] >= LIKED_RATING))
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

    >>> measured = reliability(np.array([0.1, 0.1, 0.8, 0.8]), np.array([False, False, True, False]))
    >>> round(measured.base_rate, 4), round(measured.brier, 4), round(measured.auc, 4)
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


def equal_mass_bins(predicted: DoubleArray, happened: BoolArray) -> tuple[Bin, ...]:
    """Up to BINS groups in the order of the prediction, as even as n allows, ties in the order given."""
    out = []
    for part in np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(predicted))):
        count = int(happened[part].sum())
        low, high = binomtest(count, len(part)).proportion_ci(method="wilson")
        out.append(Bin(len(part), float(predicted[part].mean()), count / len(part), float(low), float(high)))
    return tuple(out)


def write_calibration(folder: Path, measured: Calibration) -> bytes:
    """Write `calibration.json`, `.md` and `.png` into `folder`; returns the picture."""
    picture = calibration_png(measured)
    write_study(folder, "calibration", measured, calibration_markdown(measured), picture)
    return picture


def calibration_markdown(measured: Calibration) -> str:
    """One table for both probabilities, then the bins of each."""
    losses = ("Log loss", "of the constant", "Brier", "of the constant")
    rows, texts = [], []
    for name, m in (("watch", measured.watch), ("like", measured.like)):
        shares = [number(value) for value in (m.mean_probability, m.base_rate, m.ece)]
        values = [number(v, ".5f") for v in (m.log_loss, m.log_loss_constant, m.brier, m.brier_constant)]
        rows.append([f"P({name})", f"{m.n:,}", *shares, *values, number(m.auc)])
        bins = [
            [f"{b.n:,}", number(b.mean_probability), number(b.share), f"{b.low:.4f} to {b.high:.4f}"] for b in m.bins
        ]
        table = Table(["Examples", "Mean predicted", "Observed", "95 % interval"], bins)
        texts.append(f"\n## {MEANING[name]}\n\n{table.markdown()}")
    table = Table(["Probability", "Examples", "Mean predicted", "Observed", "ECE", *losses, "AUC"], rows)
    return (
        f"# Calibration on {measured.run.data.label}\n\n"
        f"ECE over {BINS} bins of equal size. The constant is the observed share of the same examples.\n"
        f"P(like) is not judged on the {measured.n_events_not_ranked:,} test events whose item was not ranked.\n\n"
        f"{table.markdown()}{''.join(texts)}"
    )


def calibration_png(measured: Calibration) -> bytes:
    """Observed share against predicted probability, a panel each; below, how many examples lie where."""
    figure, axes = plots.new_figure(5.4, (2, 2), height_ratios=[5, 1], sharex="col")
    _panel(axes[:, 0], "P(watch)", measured.watch)
    _panel(axes[:, 1], "P(like)", measured.like)
    note = f"{BINS} bins of equal size. Whiskers: 95 % interval of the observed share. Dashed: perfect calibration."
    return plots.finished(figure, "Calibration", measured.run.data, note)


def _panel(axes: Any, name: str, m: Reliability) -> None:
    shares, counts = axes
    top = min(1.0, 1.08 * max([max(b.high, b.mean_probability) for b in m.bins] + [1e-6]))
    shares.plot([0, top], [0, top], color=plots.MUTED, linewidth=1, linestyle="--")
    x = [b.mean_probability for b in m.bins]
    style = {"fmt": "o-", "color": plots.SYSTEM, "ecolor": plots.SINGLE, "markersize": 4, "capsize": 2}
    plots.dots(shares, [Estimate(b.share, b.low, b.high) for b in m.bins], x, upright=True, **style)
    counts.bar(x, [b.n for b in m.bins], width=top * 0.012, color=plots.SINGLE)
    title = f"{name}: ECE {m.ece:.4f}, {m.n:,} examples" if m.bins else f"{name}: not measured"
    shares.set_title(title, fontsize=10, color=plots.INK, loc="left")
    shares.set(xlim=(0, top), ylim=(0, top), ylabel="observed share")
    counts.set(xlabel="predicted probability", ylabel="examples")
