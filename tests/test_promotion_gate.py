"""Every branch of the gate, with exact sentences where a person acts on them."""

import math
from typing import Any

import pytest

from recsys.errors import ConfigError
from recsys.evaluation.bootstrap import Estimate, PairedDifference
from recsys.promotion_gate import GateResult, Measured, intervals, judge

GOOD: dict[str, Any] = {
    "ndcg@10": {"mean": 0.20, "low": 0.18, "high": 0.22},
    "retrieval_ndcg@10": {"mean": 0.15, "low": 0.13, "high": 0.17},
    "ranker_gain_ndcg@10": {"mean": 0.05, "low": 0.04, "high": 0.06},
    "latency_p99_ms": 12.0,
}


def model(name: str = "version 2", dataset: str = "demo", fingerprint: str = "aa", **metrics: Any) -> Measured:
    """GOOD with some metrics replaced; `_at_` stands for `@`, and None takes one away."""
    merged = GOOD | {key.replace("_at_", "@"): value for key, value in metrics.items()}
    return Measured(name, dataset, fingerprint, {k: v for k, v in merged.items() if v is not None})


CHAMPION = model("the champion (version 1)")


def ndcg(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}


def outcome(result: GateResult) -> dict[str, tuple[bool, bool]]:
    return {check.name: (check.passed, check.decides) for check in result.checks}


def test_a_first_model_is_judged_like_every_other() -> None:
    assert judge(model(), None, latency_budget_ms=50).passed
    gain = {"mean": 0.01, "low": 0.0, "high": 0.02}
    result = judge(model(ranker_gain_ndcg_at_10=gain, latency_p99_ms=80), None, latency_budget_ms=50)
    assert list(outcome(result)) == ["sane_metrics", "ranker_above_retrieval", "latency_in_budget"]
    assert result.reasons == [
        "The ranker of version 2 changes NDCG@10 of the order of retrieval by +0.0100 (95 % interval +0.0000 to"
        " +0.0200), not above zero.",
        "An answer of version 2 takes 80.0 ms at the 99th percentile, over the budget of 50 ms.",
    ]


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ({"ndcg_at_10": None}, "ndcg@10 is missing"),
        ({"latency_p99_ms": None}, "latency_p99_ms is missing"),
        ({"latency_p99_ms": True}, "latency_p99_ms is missing"),
        ({"retrieval_ndcg_at_10": {"mean": None}}, "retrieval_ndcg@10 is missing"),
        ({"ndcg_at_10": 0.2}, "ndcg@10 has no interval"),
        ({"ndcg_at_10": {"mean": math.nan, "low": 0.1, "high": 0.2}}, "ndcg@10 is not finite"),
        ({"hr_at_10": math.inf}, "hr@10 is not finite"),
        ({"cold": {"hr@10": math.nan}}, "cold.hr@10 is not finite"),
        ({"ndcg_at_10": {"mean": 0.3, "low": 0.1, "high": 0.2}}, "ndcg@10 lies outside its own interval"),
        ({"ndcg_at_10": {"mean": 1.2, "low": 1.1, "high": 1.3}}, "ndcg@10 = 1.2 is not between 0 and 1"),
        ({"latency_p99_ms": -1}, "latency_p99_ms = -1 is negative"),
    ],
)
@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_metrics_that_cannot_be_true_refuse_even_a_first_model(
    metrics: dict[str, Any], problem: str, champion: Measured | None
) -> None:
    result = judge(model(**metrics), champion, latency_budget_ms=50)
    assert result.reasons[0] == f"Version 2 has metrics that cannot be true: {problem}."


def paired(mean: float, low: float, high: float) -> PairedDifference:
    return PairedDifference(mean, low, high, fraction_not_positive=0.5, n_events=1234, n_users=56)


@pytest.mark.parametrize("difference", [None, paired(-0.03, -0.06, 0.0), paired(0, 0, 0)])
def test_a_challenger_at_every_limit_passes(difference: PairedDifference | None) -> None:
    """Equal to the low end of the champion's interval, or a paired interval that reaches zero; all of the budget."""
    result = judge(model(ndcg_at_10=ndcg(0.18), latency_p99_ms=50), CHAMPION, latency_budget_ms=50, paired=difference)
    assert all(check.passed and check.decides for check in result.checks)
    paired_sentence = ", not below zero."
    own = "0.1800, not below 0.1800, the low end of the interval of the champion (version 1)."
    assert result.checks[2].sentence.endswith(own if difference is None else paired_sentence)


@pytest.mark.parametrize(
    ("challenger", "difference", "reason"),
    [
        (
            model(ndcg_at_10=ndcg(0.19)),
            paired(-0.01, -0.015, -0.005),
            "NDCG@10 of version 2 is 0.1900, the champion (version 1) has 0.2000: on the same 1,234 events the"
            " difference is -0.0100 (95 % interval -0.0150 to -0.0050), below zero.",
        ),
        (
            model(ndcg_at_10=ndcg(0.17)),
            None,
            "NDCG@10 of version 2 is 0.1700, below 0.1800, the low end of the interval of the champion (version 1).",
        ),
        (
            model(ranker_gain_ndcg_at_10={"mean": 0.05}),
            None,
            "Version 2 does not say by how much its ranker beats the order of retrieval.",
        ),
        (
            model(fingerprint="bb", ndcg_at_10=ndcg(0.21)),
            PairedDifference(0.01, None, None, None, 3, 2),
            "NDCG@10 of version 2 is 0.2100, the champion (version 1) has 0.2000: on the same 3 events the difference"
            " is +0.0100 (too few users for an interval).",
        ),
        (
            model(dataset="ml-1m", fingerprint="bb"),
            None,
            "Version 2 was trained on ml-1m, the champion (version 1) on demo: one cannot take the place of the other.",
        ),
        (
            model(fingerprint="bb", latency_p99_ms=99),
            None,
            "An answer of version 2 takes 99.0 ms at the 99th percentile, over the budget of 50 ms.",
        ),
    ],
)
def test_a_refusal_says_why(challenger: Measured, difference: PairedDifference | None, reason: str) -> None:
    assert judge(challenger, CHAMPION, latency_budget_ms=50, paired=difference).reasons == [reason]


def test_missing_metrics_fail_the_checks_that_need_them() -> None:
    result = judge(Measured("version 2", "demo", "aa", {}), CHAMPION, latency_budget_ms=50)
    assert [name for name, (passed, _) in outcome(result).items() if passed] == ["same_dataset"]
    assert [check.measured for check in result.checks[2:]] == [None, None, None]


def test_other_events_of_the_same_data_set_are_compared_only_where_both_were_replayed() -> None:
    worse = model(fingerprint="b" * 64, ndcg_at_10=ndcg(0.16))
    assert not judge(worse, CHAMPION, latency_budget_ms=50, paired=paired(-0.01, -0.015, -0.005)).passed
    result = judge(worse, CHAMPION, latency_budget_ms=50)
    assert result.passed
    assert outcome(result)["ndcg_not_below_champion"] == (False, False)
    assert result.warnings == [
        "NDCG@10 was not compared: version 2 was measured on data bbbbbbbbbbbb, the champion (version 1) on data"
        " aa. `recsys retrain` replays both on the same events."
    ]


@pytest.mark.parametrize("broken", [None, 0.5, {"mean": 0.5, "low": math.nan, "high": 0.6}])
def test_a_champion_without_an_interval_refuses_nobody(broken: Any) -> None:
    result = judge(model(), model("the champion (version 1)", ndcg_at_10=broken), latency_budget_ms=50)
    assert result.passed
    assert result.warnings == ["NDCG@10 was not compared: the champion (version 1) has no usable interval."]


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf])
def test_a_budget_that_is_none_is_an_error(budget: float) -> None:
    with pytest.raises(ConfigError, match="latency budget must be a positive number"):
        judge(model(), None, latency_budget_ms=budget)


def test_intervals_reads_numbers_groups_and_nothing_else() -> None:
    assert intervals({"a": 1, "b": {"c": {"mean": 2, "low": 1}}, "d": "x", "e": True}) == {
        "a": Estimate(1.0),
        "b.c": Estimate(2.0, 1.0, None),
    }
