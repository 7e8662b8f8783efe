"""The policy of `recsys retrain`: when a model is trained again, and how its next version is let in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.errors import ConfigError
from recsys.experiments.effects import Effect


class RetrainPolicy(BaseModel):
    """Training: any of the first four is a reason, unless fewer than `fewest_new_events` came since the last training.

    max_age_days         of the champion, since it was trained
    new_events           so many ratings since the last training
    on_drift             an alarm of the last `recsys monitor`
    liked_rate_fall      relative fall of the champion's liked rate, its last `recent_days` against the time before;
                         the interval of the difference must exclude zero

    Letting in: each step lasts its hours and until it has its answers. One that has them not after `longest_days` ends
    in a rollback: a version that answers nobody proves nothing.

    Guardrail: differences from the champion in the same step; nothing is decided by fewer than `fewest_answers`.
    slowdown             p99 of an answer, as a multiple of the champion's
    liked_rate_effect    size of the difference in liked rate that the sequential test is quickest for
    rated_again          share of the shown items that the user had rated before
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_age_days: float = Field(default=30.0, gt=0)
    new_events: int = Field(default=10_000, gt=0)
    on_drift: bool = True
    liked_rate_fall: float = Field(default=0.1, gt=0)
    recent_days: float = Field(default=7.0, gt=0)
    fewest_new_events: int = Field(default=500, gt=0)
    latency_budget_ms: float = Field(default=50.0, gt=0)

    shadow_hours: float = Field(default=1.0, ge=0)
    shadow_answers: int = Field(default=500, gt=0)
    canary_hours: float = Field(default=24.0, ge=0)
    canary_answers: int = Field(default=2_000, gt=0)
    canary_share: float = Field(default=0.1, gt=0, lt=1)
    longest_days: float = Field(default=7.0, gt=0)

    fewest_answers: int = Field(default=200, gt=0)
    degraded: float = Field(default=0.02, ge=0)
    slowdown: float = Field(default=1.5, ge=1)
    liked_rate_effect: float = Field(default=0.02, gt=0)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    rated_again: float = Field(default=0.001, ge=0)


POLICY_FILE: Final = "retrain.json"  # in the data set's home; only what differs from the defaults


def read_policy(path: Path) -> RetrainPolicy:
    """The defaults where there is no file. Raises ConfigError for an unknown name or a value that cannot be."""
    if not path.exists():
        return RetrainPolicy()
    try:
        return RetrainPolicy.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {name or 'the file'}: {first['msg']}. Correct it, or remove the file.") from error


@dataclass(frozen=True)
class Situation:
    """What the policy decides by.

    age_days      of the champion; None where there is none
    new_events    ratings since the last training, whatever became of its version
    drift         what the last monitoring report raised an alarm for
    liked_rate    of the champion: its last days against the time before; None where there is too little
    """

    age_days: float | None
    new_events: int
    drift: tuple[str, ...] = ()
    liked_rate: Effect | None = None


def decide(policy: RetrainPolicy, now: Situation) -> list[str]:
    """The reasons to train again; none means not now."""
    if now.age_days is None:
        return ["there is no champion yet"]
    if now.new_events < policy.fewest_new_events:
        return []
    reasons = []
    if now.age_days >= policy.max_age_days:
        reasons.append(f"the champion is {now.age_days:.1f} days old, {policy.max_age_days:g} are allowed")
    if now.new_events >= policy.new_events:
        reasons.append(f"{now.new_events:,} new events, {policy.new_events:,} are enough")
    if policy.on_drift and now.drift:
        reasons.append(f"the last monitoring report found drift: {', '.join(now.drift)}")
    rate = now.liked_rate
    if rate is not None and rate.high < 0 and -rate.difference >= policy.liked_rate_fall * rate.control:
        reasons.append(
            f"the liked rate fell from {rate.control:.2%} to {rate.treatment:.2%} (95 % interval of the difference"
            f" {rate.low:+.2%} to {rate.high:+.2%})"
        )
    return reasons
