"""Tables in Markdown, as files hold them and a terminal shows them; the page (`report`) has the same ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final

from tabulate import tabulate

from recsys.evaluation.beyond_accuracy import LABELS as BEYOND_LABELS
from recsys.evaluation.bootstrap import MIN_USERS, Estimate
from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.leaderboard import ALL, NDCG, Leaderboard
from recsys.evaluation.metrics import LABELS, METRICS

NOTHING: Final = "n/a"  # a segment without events, a measure of nothing shown, a claim that too few users allow
WITH_INTERVAL: Final = (NDCG, "hr@10")  # in Markdown; the page shows every interval
BUNDLE: Final = "bundle"
FACTS_OF_A_RUN: Final = ("command", BUNDLE, "code", "date (UTC)", "machine", "python", "versions")
BEYOND_NOTE: Final = (
    "Over the top ten of every test moment, each list once. Coverage: share of the catalogue that was shown to "
    "anybody. Novelty: mean of -log2 of the share of users who rated the item up to T2. Diversity: mean of 1 - cosine "
    "of genre vectors over the pairs of a list. Popularity: mean percentile, by raters up to T2, of the items shown. "
    "Gini: 0 where all items are shown alike, near 1 where few take all places."
)


@dataclass(frozen=True)
class Table:
    """Headers and first cells are names and may hold anything; other cells are figures. The row whose name is `marked`
    stands out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: str | None = None

    def markdown(self) -> str:
        """A GitHub table whose columns are aligned, so that a terminal shows it as well; the marked row in bold."""
        rows = [
            [f"**{cell}**" if name == self.marked else cell for cell in (escaped(name), *cells)]
            for name, *cells in self.rows
        ]
        align = ["left", *["right"] * (len(self.header) - 1)]
        header = [escaped(name) for name in self.header]
        return f"{tabulate(rows, header, tablefmt='pipe', disable_numparse=True, colalign=align)}\n"


def number(value: float | None, form: str = ".4f") -> str:
    return NOTHING if value is None else format(value, form)


def mean(value: Estimate | None) -> str:
    return number(None if value is None else value.mean)


def interval(value: Estimate, n_users: int, form: str = "+.4f") -> str:
    """From where to where, or why that is not known."""
    if value.low is None or value.high is None:
        return "one user" if n_users == 1 else f"only {n_users} users"
    return f"{value.low:{form}} to {value.high:{form}}"


def estimate(value: Estimate | None, n_users: int, form: str = ".4f") -> str:
    """The mean and, in brackets, its interval."""
    if value is None:
        return NOTHING
    return f"{value.mean:{form}} [{interval(value, n_users, form).replace(' to ', ', ')}]"


def escaped(text: str) -> str:
    """One line that Markdown shows as it is, `<` and `&` as entities, since Markdown lets HTML through; without control
    characters, which could move a terminal's cursor."""
    text = re.sub(r"[\\`*\[\]|]", r"\\\g<0>", text).replace("&", "&amp;").replace("<", "&lt;")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def with_facts(text: str, about: Mapping[str, str]) -> str:
    """Markdown with a last line that says how it was measured; as it was where `about` has none of FACTS_OF_A_RUN."""
    facts = "; ".join(f"{name}: {about[name]}" for name in FACTS_OF_A_RUN if name in about)
    return f"{text.rstrip()}\n\n{escaped(f'Measured: {facts}.')}\n" if facts else text


def segment_table(board: Leaderboard, segment: str = ALL, intervals: Sequence[str] = tuple(METRICS)) -> Table:
    """A row for each method: every metric, with its interval for those in `intervals`; coverage over all events."""
    rows = []
    for method in board.methods:
        part = method.segments[segment]
        cells = [estimate(v, part.n_users) if name in intervals else mean(v) for name, v in part.metrics.items()]
        coverage = [number(method.beyond_accuracy.coverage)] if segment == ALL else []
        rows.append([method.name, *cells, *coverage])
    return Table(["Method", *LABELS.values(), *(BEYOND_LABELS[:1] if segment == ALL else ())], rows, board.system)


def cohort_table(board: Leaderboard) -> Table:
    """A row for each segment: NDCG@10 of each method."""
    rows = []
    for segment in SEGMENTS:
        parts = [method.segments[segment] for method in board.methods]
        sizes = [f"{parts[0].n_events:,}", f"{parts[0].n_users:,}"]
        rows.append([segment, *sizes, *(mean(part.metrics[NDCG]) for part in parts)])
    return Table(["Cohort", "Events", "Users", *(method.name for method in board.methods)], rows)


def beyond_accuracy_table(board: Leaderboard) -> Table:
    rows = [[m.name, *(number(value, ".4g") for value in astuple(m.beyond_accuracy))] for m in board.methods]
    return Table(["Method", *BEYOND_LABELS], rows, board.system)


def difference_table(board: Leaderboard) -> Table:
    """The full system minus each other method, a row for each metric; the share of resamples without a gain."""
    rows = []
    for d in board.differences:
        share = d.value.fraction_not_positive
        not_better = number(share, ".3f") if share != 0 else f"< {1 / board.bootstrap.n_boot:.3g}"
        rows.append([d.other, LABELS[d.metric], f"{d.value.mean:+.4f}", interval(d.value, d.value.n_users), not_better])
    level = f"{board.bootstrap.level:.0%} interval"
    return Table(["Compared with", "Metric", "Difference", level, "Not better"], rows)


def leaderboard_markdown(board: Leaderboard, segment: str = ALL) -> str:
    """The events of one segment; over all events also the finding and the differences."""
    size = board.methods[0].segments[segment]
    head = "Test" if segment == ALL else f"{segment.capitalize()} ({SEGMENTS[segment]})"
    caption = (
        f"Data: {board.data.label}. {head}: {size.n_events:,} events of {size.n_users:,} users after "
        f"{board.protocol.t2_utc}. In brackets: {board.bootstrap.level:.0%} bootstrap interval over users."
    )
    text = f"{escaped(caption)}\n\n{segment_table(board, segment, WITH_INTERVAL).markdown()}"
    if segment == ALL:
        text += f"\n{escaped(finding(board))}\n"
        if board.differences:
            compared = f"{board.system} minus each other method, on the same events:"
            text += f"\n{escaped(compared)}\n\n{difference_table(board).markdown()}"
    return text


def cohorts_markdown(board: Leaderboard) -> str:
    """NDCG@10 of every method in every segment, then each segment but the first with all metrics."""
    note = escaped(f"Data: {board.data.label}. {LABELS[NDCG]} of each method by cohort. Cohorts overlap.")
    parts = [f"# Cohorts\n\n{note}\n\n{cohort_table(board).markdown()}"]
    parts += [f"## {name}\n\n{leaderboard_markdown(board, name)}" for name in SEGMENTS if name != ALL]
    return "\n".join(parts)


def beyond_accuracy_markdown(board: Leaderboard) -> str:
    note = escaped(f"Data: {board.data.label}. {BEYOND_NOTE}")
    return f"# Beyond accuracy\n\n{note}\n\n{beyond_accuracy_table(board).markdown()}"


def finding(board: Leaderboard) -> str:
    """What the leaderboard shows, in two or three sentences, by NDCG@10 over all events."""
    means = {method.name: cell for method in board.methods if (cell := method.overall[NDCG]) is not None}
    if not means:
        return "There was no test event, so nothing was measured."
    level = f"{board.bootstrap.level:.0%} interval"
    lead = board.system or max(means, key=lambda name: means[name].mean)
    n_users = board.methods[0].segments[ALL].n_users
    first = (
        f"Over all test events, {lead} reaches NDCG@10 {means[lead].mean:.4f} "
        f"({level} {interval(means[lead], n_users, '.4f')})."
    )
    best = next((name for name in board.best_singles(2) if name != lead), None)
    if board.system is None or best is None:
        return first
    d = board.difference(best)
    if d.low is None:
        verdict = f"{interval(d, d.n_users)}, and an interval needs at least {MIN_USERS}"
    elif d.above_zero or d.below_zero:
        side = "ahead" if d.above_zero else "behind"
        verdict = f"the system is {side} ({level} of the difference {interval(d, d.n_users)})"
    else:
        verdict = f"these data do not tell them apart ({level} {interval(d, d.n_users)})"
    return (
        f"{first} The best single retriever is {best} at {means[best].mean:.4f}; difference {d.mean:+.4f}: {verdict}."
    )
