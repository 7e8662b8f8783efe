"""Pictures of a leaderboard as PNG bytes: methods, cohorts, retrieval, what the ranker looks at.

White background; each names its data set. Files are written by `report`. matplotlib is imported when a picture is
drawn, never at import, and pyplot with its global state not at all.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from recsys.arrays import DoubleArray, IntArray
from recsys.data.tables import DatasetInfo
from recsys.evaluation.bootstrap import Estimate
from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.leaderboard import ALL, NDCG, Leaderboard
from recsys.evaluation.metrics import LABELS, recall_curve

DPI: Final = 160
INK, MUTED, GRID = "#1f2430", "#5d6675", "#e3e6eb"
SINGLE, SYSTEM, WARNING = "#9fb2c8", "#1f5fa8", "#a63d00"
# Okabe and Ito's colours, told apart by colour-blind readers too; the line style changes with each round.
LINES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES: Final = ("-", "--", ":")
MARKERS: Final = ("o", "s", "D", "^", "v")
KS: Final = tuple(range(10, 501, 10))
FEATURES: Final = 25  # bars of the ranker's picture
LEGEND: Final[dict[str, Any]] = {"frameon": False, "fontsize": 9, "labelcolor": INK}


def leaderboard_png(board: Leaderboard) -> bytes:
    """Horizontal bars of NDCG@10 with interval whiskers, in the leaderboard's order; single retrievers are paler.

    A method without events keeps its line, with "no events" in place of a bar.
    """
    figure, axes = new_figure(height=1.6 + 0.4 * len(board.methods), labels=[m.name for m in board.methods])
    top = _highest(m.overall[NDCG] for m in board.methods)
    for y, method in enumerate(board.methods):
        cell = method.overall[NDCG]
        if cell is None:
            _no_events(axes, top, y)
            continue
        axes.barh(y, cell.mean, height=0.62, color=SYSTEM if method.kind == "system" else SINGLE)
        axes.errorbar(cell.mean, y, xerr=whiskers(cell), color=INK, capsize=3, linewidth=1.1)
        weight = "bold" if method.name == board.system else "normal"
        axes.text((cell.high or cell.mean) + top * 0.015, y, f"{cell.mean:.4f}", va="center", fontsize=9, weight=weight)
    row_labels(axes, [m.name for m in board.methods])
    axes.set_xlim(0, top * 1.14)
    size = board.methods[0].segments[ALL]
    note = (
        f"Mean over {size.n_events:,} test events of {size.n_users:,} users. Pale: one retriever alone. "
        f"Whiskers: {board.bootstrap.level:.0%} bootstrap interval over users."
    )
    return finished(figure, f"{LABELS[NDCG]} of each method", board.data.label, note, synthetic=board.data.synthetic)


def cohorts_png(board: Leaderboard, names: Sequence[str]) -> bytes:
    """NDCG@10 of the named methods in each segment: a dot with interval whiskers, segments from top to bottom.

    A segment without events keeps its line, with "no events" in place of dots. Raises ValueError where no method is
    named, or one that the leaderboard does not hold.
    """
    by_name = {method.name: method for method in board.methods}
    if not names or (unknown := [name for name in names if name not in by_name]):
        raise ValueError(f"Unknown methods {unknown if names else names}; the leaderboard holds {', '.join(by_name)}.")
    sizes = by_name[names[0]].segments
    labels = [f"{segment}: {sizes[segment].n_events:,}" for segment in SEGMENTS]
    figure, axes = new_figure(height=2.2 + 0.11 * len(SEGMENTS) * (len(names) + 1), labels=labels, foot=0.95)
    top = _highest(by_name[name].segments[segment].metrics[NDCG] for name in names for segment in SEGMENTS)
    for number, name in enumerate(names):
        offset = (number + 1) / (len(names) + 1) - 0.5
        style: dict[str, Any] = {"color": LINES[number % len(LINES)], "fmt": MARKERS[number % len(MARKERS)]}
        drawn = [
            (cell, y + offset)
            for y, segment in enumerate(SEGMENTS)
            if (cell := by_name[name].segments[segment].metrics[NDCG]) is not None
        ]
        axes.errorbar(
            [cell.mean for cell, _ in drawn],
            [y for _, y in drawn],
            xerr=np.hstack([whiskers(cell) for cell, _ in drawn]) if drawn else None,
            **style,
            markersize=5,
            capsize=2,
            linewidth=1.1,
            label=one_line(name, 22),
        )
    for y, segment in enumerate(SEGMENTS):
        if not sizes[segment].n_events:
            _no_events(axes, top, y)
        axes.axhline(y + 0.5, color=GRID, linewidth=0.8)
    row_labels(axes, labels)
    axes.set_xlim(-top * 0.012, top * 1.04)
    below = (0.01, 0.3 / figure.get_figheight())
    figure.legend(loc="lower left", ncols=min(len(names), 4), bbox_to_anchor=below, **LEGEND)
    note = (
        f"Beside each cohort its number of events; cohorts overlap. Whiskers: {board.bootstrap.level:.0%} "
        "bootstrap interval over users."
    )
    return finished(figure, f"{LABELS[NDCG]} by cohort", board.data.label, note, synthetic=board.data.synthetic)


def retrieval_png(ranks: Mapping[str, IntArray], data: DatasetInfo) -> bytes:
    """Recall@k for k = 10 to 500, a line for each retrieval method; the legend is in the order of Recall@500.

    Raises ValueError where there is no method, or a method without events.
    """
    if not ranks:
        raise ValueError("A retrieval picture needs the ranks of at least one method.")
    figure, axes = new_figure(height=4.6, right=0.73, foot=0.82)
    curves = {name: recall_curve(rank, KS) for name, rank in ranks.items()}
    for i, name in enumerate(sorted(curves, key=lambda n: (-curves[n][-1], n))):
        colour, style = LINES[i % len(LINES)], STYLES[i // len(LINES) % len(STYLES)]
        text = f"{one_line(name, 22)}  {curves[name][-1]:.3f}"
        axes.plot(KS, curves[name], style, color=colour, linewidth=2, label=text)
    axes.set(xlim=(0, KS[-1]), ylim=(0, min(1.02, 1.08 * max(float(c[-1]) for c in curves.values()) + 1e-9)))
    axes.set_xticks([10, 100, 200, 300, 400, 500])
    axes.set_xlabel("k, length of the candidate list", color=MUTED)
    axes.set_ylabel("Recall@k", color=MUTED)
    axes.grid(color=GRID)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), title="Recall@500", alignment="left", **LEGEND)
    n_events = max(len(rank) for rank in ranks.values())
    note = f"Share of {n_events:,} test events whose item is among the first k candidates."
    return finished(figure, "Recall of retrieval", data.label, note, synthetic=data.synthetic)


def importance_png(gains: Mapping[str, float], data: DatasetInfo) -> bytes:
    """Bars of the share of the ranker's total gain, largest first, the FEATURES largest; ties by name.

    Raises ValueError where there is no gain, or one that is negative or not finite.
    """
    values = np.array(list(gains.values()), dtype=np.float64)
    if not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("Feature gains must be a non-empty mapping of numbers >= 0.")
    total = float(values.sum()) or 1.0  # a ranker that never split: all bars are 0
    shown = sorted(gains, key=lambda name: (-gains[name], name))[:FEATURES]
    figure, axes = new_figure(height=1.6 + 0.27 * len(shown), labels=shown)
    shares = [gains[name] / total for name in shown]
    axes.barh(range(len(shown)), shares, height=0.66, color=SYSTEM)
    for y, share in enumerate(shares):
        axes.text(share + max([*shares, 1e-9]) * 0.01, y, f"{share:.1%}", va="center", color=INK, fontsize=8.5)
    row_labels(axes, shown)
    axes.set_xlim(0, max([*shares, 1e-9]) * 1.12)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    rest = f" The other {len(gains) - len(shown)} are left out." if len(gains) > len(shown) else ""
    note = f"Share of the total gain of all splits, of {len(gains)} features.{rest} Gain is not causation."
    return finished(figure, "What the ranker looks at", data.label, note, synthetic=data.synthetic)


def new_figure(height: float, labels: Sequence[str] = (), right: float = 0.985, foot: float = 0.6) -> tuple[Any, Any]:
    """A figure 8.4 inches wide with one bare pair of axes, two lines above it and `foot` inches below it.

    The left margin is as wide as the longest of the row labels needs.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, height), dpi=DPI, facecolor="white")
    left = min(max(0.085, 0.03 + 0.0122 * max((len(text) for text in labels), default=0)), 0.4)
    axes = figure.add_axes((left, foot / height, right - left, (height - foot - 0.72) / height))
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    return figure, axes


def finished(figure: Any, title: str, label: str, note: str, *, synthetic: bool) -> bytes:
    """The figure as PNG, with its title, the label of its data set, and a note. No date: the same figure gives the same
    bytes."""
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.14 / height, title, va="top", fontsize=13, weight="bold", color=INK)
    style = {"color": WARNING, "weight": "bold"} if synthetic else {"color": MUTED}
    figure.text(0.02, 1 - 0.42 / height, f"Data: {one_line(label, 60)}", va="top", fontsize=10, **style)
    figure.text(0.02, 0.12 / height, note, va="bottom", fontsize=8.5, color=MUTED)
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the built-in font lacks is drawn as boxes; that must not stop an evaluation.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def whiskers(cell: Estimate) -> DoubleArray:
    """(2, 1) lengths to the left and to the right of the mean, 0 without an interval; rounding makes none negative."""
    if cell.low is None or cell.high is None:
        return np.zeros((2, 1))
    return np.maximum([[cell.mean - cell.low], [cell.high - cell.mean]], 0.0)


def one_line(text: str, longest: int) -> str:
    """One line of at most `longest` characters, in which `$` does not start a formula."""
    line = " ".join(text.split())
    return (line if len(line) <= longest else line[: longest - 1] + "…").replace("$", r"\$")


def _highest(cells: Iterable[Estimate | None]) -> float:
    return max([cell.high or cell.mean for cell in cells if cell is not None] + [1e-9])


def row_labels(axes: Any, labels: Sequence[str]) -> None:
    """Row labels from top to bottom."""
    axes.set_yticks(range(len(labels)), [one_line(label, 36) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color=GRID)


def _no_events(axes: Any, top: float, y: float) -> None:
    axes.text(top * 0.01, y, "no events", va="center", color=MUTED, fontsize=9, style="italic")
