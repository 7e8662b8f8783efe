"""Pictures of a leaderboard as PNG bytes: methods, cohorts, retrieval, what the ranker looks at; and their style.

White background; each names its data set. matplotlib is imported when a picture is drawn, never at import, and pyplot
with its global state not at all.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from recsys.arrays import IntArray
from recsys.data.tables import DatasetInfo
from recsys.evaluation.bootstrap import Estimate
from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.leaderboard import ALL, NDCG, Leaderboard
from recsys.evaluation.metrics import LABELS, recall_curve

DPI: Final = 160
INK, MUTED, GRID = "#1f2430", "#5d6675", "#e3e6eb"
SINGLE, SYSTEM, WARNING = "#9fb2c8", "#1f5fa8", "#a63d00"
# Okabe and Ito's colours, told apart by colour-blind readers too; style and marker change with each round.
LINES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES: Final = ("-", "--", ":")
MARKERS: Final = ("o", "s", "D", "^", "v")
KS: Final = tuple(range(10, 501, 10))
FEATURES: Final = 25  # bars of the ranker's picture
STYLE: Final[dict[str, Any]] = {
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    **{"axes.edgecolor": GRID, "grid.color": GRID, "axes.axisbelow": True, "axes.labelcolor": MUTED},
    **{"xtick.color": MUTED, "ytick.color": MUTED, "ytick.labelcolor": INK, "xtick.labelsize": 9, "ytick.labelsize": 9},
    **{"xtick.major.size": 0, "ytick.major.size": 0},
}
LEGEND: Final[dict[str, Any]] = {
    **{"loc": "upper left", "bbox_to_anchor": (1.0, 1.02), "alignment": "left"},
    **{"frameon": False, "fontsize": 9, "labelcolor": INK},
}


def leaderboard_png(board: Leaderboard) -> bytes:
    """Horizontal bars of NDCG@10 with interval whiskers, in the leaderboard's order; single retrievers are paler."""
    names = [method.name for method in board.methods]
    figure, axes = rows_figure(names, height=1.6 + 0.4 * len(names))
    top = highest(m.overall[NDCG] for m in board.methods)
    for y, method in enumerate(board.methods):
        cell = method.overall[NDCG]
        if cell is None:
            _no_events(axes, top, y)
            continue
        axes.barh(y, cell.mean, height=0.62, color=SYSTEM if method.kind == "system" else SINGLE)
        dots(axes, [cell], [y], fmt="none", ecolor=INK, linewidth=1.1)
        weight = "bold" if method.name == board.system else "normal"
        axes.text((cell.high or cell.mean) + top * 0.015, y, f"{cell.mean:.4f}", va="center", fontsize=9, weight=weight)
    axes.set_xlim(0, top * 1.14)
    size = board.methods[0].segments[ALL]
    note = (
        f"Mean over {size.n_events:,} test events of {size.n_users:,} users. Pale: one retriever alone. "
        f"Whiskers: {board.bootstrap.level:.0%} bootstrap interval over users."
    )
    return finished(figure, f"{LABELS[NDCG]} of each method", board.data, note)


def cohorts_png(board: Leaderboard, names: Sequence[str]) -> bytes:
    """NDCG@10 of the named methods in each segment: a dot with interval whiskers, segments from top to bottom."""
    methods = [board.method(name) for name in names]
    sizes = methods[0].segments
    labels = [f"{segment}: {sizes[segment].n_events:,}" for segment in SEGMENTS]
    figure, axes = rows_figure(labels, height=1.8 + 0.11 * len(SEGMENTS) * (len(names) + 1))
    top = highest(method.segments[segment].metrics[NDCG] for method in methods for segment in SEGMENTS)
    for i, method in enumerate(methods):
        offset = (i + 1) / (len(names) + 1) - 0.5
        cells = [(y + offset, method.segments[segment].metrics[NDCG]) for y, segment in enumerate(SEGMENTS)]
        drawn = [(y, cell) for y, cell in cells if cell is not None]
        style: dict[str, Any] = {
            "color": LINES[i % len(LINES)],
            "fmt": MARKERS[i % len(MARKERS)],
            "markersize": 5,
            "capsize": 2,
        }
        dots(axes, [c for _, c in drawn], [y for y, _ in drawn], **style, label=one_line(method.name, 22))
    for y, segment in enumerate(SEGMENTS):
        if not sizes[segment].n_events:
            _no_events(axes, top, y)
        axes.axhline(y + 0.5, color=GRID, linewidth=0.8)
    axes.set_xlim(-top * 0.012, top * 1.04)
    axes.legend(**LEGEND)
    note = (
        f"Beside each cohort its number of events; cohorts overlap. Whiskers: {board.bootstrap.level:.0%} "
        "bootstrap interval over users."
    )
    return finished(figure, f"{LABELS[NDCG]} by cohort", board.data, note)


def retrieval_png(ranks: Mapping[str, IntArray], data: DatasetInfo) -> bytes:
    """Recall@k for k = 10 to 500, a line for each retrieval method; the legend is in the order of Recall@500."""
    figure, axes = new_figure(height=4.6)
    curves = {name: recall_curve(rank, KS) for name, rank in ranks.items()}
    for i, name in enumerate(sorted(curves, key=lambda n: (-curves[n][-1], n))):
        colour, style = LINES[i % len(LINES)], STYLES[i // len(LINES) % len(STYLES)]
        text = f"{one_line(name, 22)}  {curves[name][-1]:.3f}"
        axes.plot(KS, curves[name], style, color=colour, linewidth=2, label=text)
    axes.set(xlim=(0, KS[-1]), ylim=(0, min(1.02, 1.08 * max(float(c[-1]) for c in curves.values()) + 1e-9)))
    axes.set(xticks=[10, *range(100, 501, 100)], xlabel="k, length of the candidate list", ylabel="Recall@k")
    axes.legend(title="Recall@500", **LEGEND)
    n_events = max(len(rank) for rank in ranks.values())
    note = f"Share of {n_events:,} test events whose item is among the first k candidates."
    return finished(figure, "Recall of retrieval", data, note)


def importance_png(gains: Mapping[str, float], data: DatasetInfo) -> bytes:
    """Bars of the share of the ranker's total gain, largest first, the FEATURES largest; ties by name."""
    total = sum(gains.values()) or 1.0  # a ranker that never split: all bars are 0
    shown = sorted(gains, key=lambda name: (-gains[name], name))[:FEATURES]
    figure, axes = rows_figure(shown, height=1.6 + 0.27 * len(shown))
    shares = [gains[name] / total for name in shown]
    bars = axes.barh(range(len(shown)), shares, height=0.66, color=SYSTEM)
    axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=3, color=INK, fontsize=8.5)
    axes.set_xlim(0, max([*shares, 1e-9]) * 1.12)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    rest = f" The other {len(gains) - len(shown)} are left out." if len(gains) > len(shown) else ""
    note = f"Share of the total gain of all splits, of {len(gains)} features.{rest} Gain is not causation."
    return finished(figure, "What the ranker looks at", data, note)


def new_figure(height: float, panels: tuple[int, int] = (1, 1), **options: Any) -> tuple[Any, Any]:
    """A figure 8.4 inches wide in our style, and its axes: one pair, or an array (rows, columns) of `panels`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, height), dpi=DPI, facecolor="white", layout="constrained")
        axes = figure.subplots(*panels, **options)
    for one in figure.axes:
        one.grid()
    return figure, axes


def rows_figure(labels: Sequence[str], height: float) -> tuple[Any, Any]:
    """A figure with a labelled row for each of `labels` from top to bottom."""
    figure, axes = new_figure(height)
    axes.set_yticks(range(len(labels)), [one_line(label, 36) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return figure, axes


def dots(axes: Any, cells: Sequence[Estimate], at: Sequence[float], *, upright: bool = False, **style: Any) -> None:
    """The means with their intervals as whiskers: from left to right, or `upright`. No interval, no whisker."""
    means = [cell.mean for cell in cells]
    low = [0.0 if cell.low is None else max(cell.mean - cell.low, 0.0) for cell in cells]
    high = [0.0 if cell.high is None else max(cell.high - cell.mean, 0.0) for cell in cells]
    places = {"x": at, "y": means, "yerr": [low, high]} if upright else {"x": means, "y": at, "xerr": [low, high]}
    axes.errorbar(**{key: np.array(values) for key, values in places.items()}, **{"capsize": 3, **style})


def finished(figure: Any, title: str, data: DatasetInfo, note: str) -> bytes:
    """The figure as PNG, with its title, the label of its data set, and a note. No date: the same figure gives the same
    bytes."""
    colour = WARNING if data.synthetic else INK
    heading = f"{title}\nData: {one_line(data.label, 60)}"
    figure.suptitle(heading, x=0.02, ha="left", fontsize=12, weight="bold", color=colour)
    figure.supxlabel(note, x=0.02, ha="left", fontsize=8.5, color=MUTED)
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the built-in font lacks is drawn as boxes; that must not stop an evaluation.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def one_line(text: str, longest: int) -> str:
    """One line of at most `longest` characters, in which `$` does not start a formula."""
    line = " ".join(text.split())
    return (line if len(line) <= longest else line[: longest - 1] + "…").replace("$", r"\$")


def highest(cells: Iterable[Estimate | None]) -> float:
    return max([cell.high or cell.mean for cell in cells if cell is not None] + [1e-9])


def _no_events(axes: Any, top: float, y: float) -> None:
    axes.text(top * 0.01, y, "no events", va="center", color=MUTED, fontsize=9, style="italic")
