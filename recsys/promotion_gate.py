"""The gate: may this challenger become champion, and why not.

The metrics are those of a version's *sibling* frozen at T2, by name: a plain number, or `{"mean": .., "low": ..,
"high": ..}` with a 95 % interval; groups may nest.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from recsys.errors import ConfigError
from recsys.evaluation.bootstrap import MIN_USERS, Estimate, PairedDifference

NDCG: Final = "ndcg@10"
RETRIEVAL_NDCG: Final = "retrieval_ndcg@10"  # the same candidates in the order in which retrieval returned them
RANKER_GAIN: Final = "ranker_gain_ndcg@10"  # the first minus the second on the same events, interval over users
LATENCY_P99: Final = "latency_p99_ms"


@dataclass(frozen=True)
class Measured:
    """What is known of a model: `name` as sentences call it ("version 2"), its data, and its metrics."""

    name: str
    dataset: str
    fingerprint: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One check. `decides` is False where a failure is only a warning; `measured` and `needed` are None where
    there was nothing to measure or nothing to hold it against."""

    name: str
    passed: bool
    measured: float | str | None
    needed: float | str | None
    sentence: str
    decides: bool = True


@dataclass(frozen=True)
class GateResult:
    passed: bool
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> list[str]:
        """Why it was refused: the failed checks that decide. Empty when it passed."""
        return [c.sentence for c in self.checks if c.decides and not c.passed]

    @property
    def warnings(self) -> list[str]:
        """What failed, or could not be checked, without deciding."""
        return [c.sentence for c in self.checks if not c.decides and not c.passed]

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": [asdict(c) for c in self.checks]}


def intervals(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Estimate]:
    """Every metric by its dotted name; what is not a number is left out.

    >>> intervals({"ndcg@10": {"mean": 0.2, "low": 0.1, "high": 0.3}, "cold": {"hr@10": 0.5}, "note": None})
    {'ndcg@10': Estimate(mean=0.2, low=0.1, high=0.3), 'cold.hr@10': Estimate(mean=0.5, low=None, high=None)}
    """
    flat: dict[str, Estimate] = {}
    for name, value in metrics.items():
        ends = value if isinstance(value, Mapping) else {"mean": value}
        if "mean" not in ends:
            flat |= intervals(ends, f"{prefix}{name}.")
        elif (mean := _number(ends["mean"])) is not None:
            flat[prefix + name] = Estimate(mean, _number(ends.get("low")), _number(ends.get("high")))
    return flat


def judge(
    challenger: Measured,
    champion: Measured | None,
    *,
    latency_budget_ms: float,
    paired: PairedDifference | None = None,
) -> GateResult:
    """Decide whether `challenger` may take the place of `champion`.

    paired   NDCG@10 of the challenger minus that of the champion over the events that the challenger was measured on

    - Sane metrics; the ranker above the order of retrieval by an interval that excludes zero; p99 latency within the
      budget (equal passes). A first model has to pass them too.
    - With a champion also: the same data set; NDCG@10 not below the champion's.
    - With `paired`, NDCG@10 is below where the whole interval of the difference is. Without, it is below where it does
      not reach the low end of the champion's own interval (equal passes), which sees large drops only.
    - Where nothing is paired, and the champion was measured on other events (another fingerprint) or has no usable
      interval, NDCG@10 is not compared, and a warning says so.
    """
    if not (math.isfinite(latency_budget_ms) and latency_budget_ms > 0):
        raise ConfigError(f"The latency budget must be a positive number of milliseconds, not {latency_budget_ms}.")
    checks = [_sane(challenger)]
    if champion is not None:
        checks += [_same_dataset(challenger, champion), _not_below_champion(challenger, champion, paired)]
    checks += [_ranker_above_retrieval(challenger), _latency(challenger, latency_budget_ms)]
    return GateResult(all(c.passed or not c.decides for c in checks), tuple(checks))


def _sane(model: Measured) -> Check:
    known = intervals(model.metrics)
    wrong = [f"{name} is missing" for name in (NDCG, RETRIEVAL_NDCG, LATENCY_P99) if name not in known]
    enough = known["n_users"].mean >= MIN_USERS if "n_users" in known else True  # fewer give no interval
    if NDCG in known and enough and (known[NDCG].low is None or known[NDCG].high is None):
        wrong.append(f"{NDCG} has no interval")
    for name, value in known.items():
        ends = [v for v in (value.low, value.mean, value.high) if v is not None]
        if not all(math.isfinite(v) for v in ends):
            wrong.append(f"{name} is not finite")
        elif ends != sorted(ends):
            wrong.append(f"{name} lies outside its own interval")
        elif name in (NDCG, RETRIEVAL_NDCG) and not 0 <= value.mean <= 1:
            wrong.append(f"{name} = {value.mean:g} is not between 0 and 1")
        elif name == LATENCY_P99 and value.mean < 0:
            wrong.append(f"{name} = {value.mean:g} is negative")
    measured = "; ".join(wrong) or f"{len(known)} metrics"
    verdict = f"has metrics that cannot be true: {measured}" if wrong else f"has sane metrics ({len(known)} of them)"
    return Check("sane_metrics", not wrong, measured, "finite and complete", f"{_start(model.name)} {verdict}.")


def _same_dataset(challenger: Measured, champion: Measured) -> Check:
    same = challenger.dataset == champion.dataset
    sentence = (
        f"{_start(challenger.name)} was trained on {challenger.dataset}, as was {champion.name}."
        if same
        else f"{_start(challenger.name)} was trained on {challenger.dataset}, {champion.name} on {champion.dataset}:"
        " one cannot take the place of the other."
    )
    return Check("same_dataset", same, challenger.dataset, champion.dataset, sentence)


def _not_below_champion(challenger: Measured, champion: Measured, paired: PairedDifference | None) -> Check:
    name = "ndcg_not_below_champion"
    ours, theirs = intervals(challenger.metrics).get(NDCG), intervals(champion.metrics).get(NDCG)
    measured = ours.mean if ours else None
    if paired is not None and measured is not None:
        passed = paired.low is not None and not paired.below_zero
        interval = "too few users for an interval)"
        if paired.low is not None and paired.high is not None:
            interval = f"95 % interval {paired.low:+.4f} to {paired.high:+.4f}), {'not ' if passed else ''}below zero"
        sentence = (
            f"NDCG@10 of {challenger.name} is {measured:.4f}, {champion.name} has {measured - paired.mean:.4f}: on the"
            f" same {paired.n_events:,} events the difference is {paired.mean:+.4f} ({interval}."
        )
        return Check(name, passed, paired.high, 0.0, sentence)
    if challenger.fingerprint != champion.fingerprint:
        reason = (
            f"{challenger.name} was measured on data {challenger.fingerprint[:12]}, {champion.name} on data"
            f" {champion.fingerprint[:12]}. `recsys retrain` replays both on the same events."
        )
        return Check(name, False, measured, None, f"NDCG@10 was not compared: {reason}", decides=False)
    if theirs is None or theirs.low is None or not math.isfinite(theirs.low):
        reason = f"{champion.name} has no usable interval."
        return Check(name, False, measured, None, f"NDCG@10 was not compared: {reason}", decides=False)
    if measured is None:
        return Check(name, False, None, theirs.low, f"{_start(challenger.name)} has no NDCG@10 to compare.")
    passed = measured >= theirs.low  # False for nan
    sentence = (
        f"NDCG@10 of {challenger.name} is {measured:.4f}, {'not below' if passed else 'below'} {theirs.low:.4f},"
        f" the low end of the interval of {champion.name}."
    )
    return Check(name, passed, measured, theirs.low, sentence)


def _ranker_above_retrieval(model: Measured) -> Check:
    name, gain = "ranker_above_retrieval", intervals(model.metrics).get(RANKER_GAIN)
    if gain is None or gain.low is None or gain.high is None:
        sentence = f"{_start(model.name)} does not say by how much its ranker beats the order of retrieval."
        return Check(name, False, gain.mean if gain else None, 0.0, sentence)
    sentence = (
        f"The ranker of {model.name} changes NDCG@10 of the order of retrieval by {gain.mean:+.4f} (95 % interval"
        f" {gain.low:+.4f} to {gain.high:+.4f}), {'' if gain.above_zero else 'not '}above zero."
    )
    return Check(name, gain.above_zero, gain.low, 0.0, sentence)


def _latency(model: Measured, budget_ms: float) -> Check:
    """The measurement that the version carries: the same bundle gets the same verdict whenever it is judged."""
    p99 = intervals(model.metrics).get(LATENCY_P99)
    if p99 is None:
        sentence = f"{_start(model.name)} carries no latency measurement."
        return Check("latency_in_budget", False, None, budget_ms, sentence)
    passed = p99.mean <= budget_ms
    sentence = (
        f"An answer of {model.name} takes {p99.mean:.1f} ms at the 99th percentile,"
        f" {'within' if passed else 'over'} the budget of {budget_ms:g} ms."
    )
    return Check("latency_in_budget", passed, p99.mean, budget_ms, sentence)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _start(name: str) -> str:
    """A name at the start of a sentence."""
    return name[:1].upper() + name[1:]
