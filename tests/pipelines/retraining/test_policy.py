"""When a model is trained again, by a table of situations, and what the guardrail calls harm, on planted answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.retraining.guardrail import guardrail
from pipelines.retraining.policy import RetrainPolicy, Situation, decide, read_policy
from recsys.errors import ConfigError
from recsys.experiments.effects import Effect

POLICY = RetrainPolicy(max_age_days=30, new_events=10_000, fewest_new_events=500)


def rate(then: float, now: float, reach: float) -> Effect:
    difference = now - then
    return Effect(then, now, difference, difference - reach, difference + reach, reach / 1.96, 0.5, 0.0, 99, 99)


@pytest.mark.parametrize(
    ("situation", "reasons"),
    [
        (Situation(None, 0), ["there is no champion yet"]),
        (Situation(29.9, 9_999), []),
        (Situation(30.0, 500), ["the champion is 30.0 days old, 30 are allowed"]),
        (Situation(1.0, 10_000), ["10,000 new events, 10,000 are enough"]),
        (Situation(1.0, 500, ("age",)), ["the last monitoring report found drift: age"]),
        (
            Situation(1.0, 500, (), rate(0.2, 0.17, 0.02)),
            [
                "the liked rate fell from 20.00% to 17.00% (95 % interval of the difference -5.00% to -1.00%)",
            ],
        ),
        (Situation(1.0, 500, (), rate(0.2, 0.17, 0.04)), []),  # the interval holds zero
        (Situation(1.0, 500, (), rate(0.2, 0.19, 0.005)), []),  # a twentieth
        (Situation(99.0, 499, ("psi of age",), rate(0.2, 0.1, 0.01)), []),  # nothing to learn from
    ],
)
def test_the_policy_decides_and_says_why(situation: Situation, reasons: list[str]) -> None:
    assert decide(POLICY, situation) == reasons


def test_every_reason_is_named() -> None:
    assert len(decide(POLICY, Situation(31.0, 20_000, ("psi of age",), rate(0.2, 0.1, 0.01)))) == 4
    assert not decide(POLICY.model_copy(update={"on_drift": False}), Situation(1.0, 500, ("psi of age",)))


def test_a_policy_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "retrain.json"
    assert read_policy(path) == RetrainPolicy()
    path.write_text('{"canary_share": 0.2}')
    assert read_policy(path) == RetrainPolicy(canary_share=0.2)
    for text, reason in (
        ('{"canary": 1}', "canary: Extra"),
        ('{"canary_share": 2}', "canary_share: "),
        ("[", "the file"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            read_policy(path)


def shown(n: int, **values: Any) -> pd.DataFrame:
    """n answers of one item to n users."""
    usual = {"role": "shown", "degraded": "", "total_ms": 8.0 + np.arange(n) % 5, "state_seq": 0, "liked": False}
    ids = {"request_id": np.arange(n).astype(str), "user_id": np.arange(n), "item_id": 900, "received": 0}
    return pd.DataFrame({**ids, **usual, **values})


RATED = pd.DataFrame({"user_id": np.arange(2_000), "item_id": 7, "seq": np.arange(2_000)})


@pytest.mark.parametrize(
    ("ours", "failures"),
    [
        (shown(1_000), []),
        (shown(1_000, degraded=np.where(np.arange(1_000) % 50, "", "ranker")), []),  # 2 %
        (shown(1_000, degraded=np.where(np.arange(1_000) % 25, "", "ranker")), ["4.0% of its answers were degraded"]),
        (shown(1_000, total_ms=3 * (8.0 + np.arange(1_000) % 5)), ["its p99 is 36.0 ms, the champion's 12.0 ms"]),
        (shown(200, total_ms=np.where(np.arange(200) < 4, 40.0, 9.0)), []),  # four of 200 may be chance
        (shown(199, total_ms=99.0, degraded="ranker"), []),  # too few to decide by
        (shown(1_000, item_id=7, state_seq=0), []),  # a thousandth: only user 0's event was known
        (shown(1_000, item_id=7, state_seq=99), ["10.0% of the items that it listed had been rated"]),
        (shown(1_000, item_id=7, state_seq=-1), []),  # made without the user's events, which the answer says
        (shown(1_000, liked=np.arange(1_000) % 10 == 0), ["10.00% of what it showed was liked, 20.00% of"]),
        (shown(1_000, liked=np.arange(1_000) % 3 == 0), []),
    ],
)
def test_the_guardrail_finds_harm_and_nothing_else(ours: pd.DataFrame, failures: list[str]) -> None:
    theirs = shown(1_000, liked=np.arange(1_000) % 5 == 0)
    ours = ours if ours["liked"].any() else ours.assign(liked=np.arange(len(ours)) % 5 == 0)
    finding = guardrail(ours, theirs, RATED, RetrainPolicy())
    assert finding.n_answers == len(ours)
    assert len(finding.failures) == len(failures)
    for said, expected in zip(finding.failures, failures, strict=True):
        assert expected in said
