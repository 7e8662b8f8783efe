"""Which arm of an experiment a user belongs to: a salted hash, the same in every worker and after every restart."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from recsys.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    """share: of the users, above 0; version: of the model that serves it, None for the champion; settings: what it
    changes in a request, such as {"diversity": 0.3}."""

    name: str
    share: float
    version: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """`arms[0]` is the control. The salt is the name: another experiment splits the same people independently.

    Raises ConfigError unless there are two or more arms of different names whose shares add up to 1.

    >>> trial = Experiment("diversity", (Arm("control", 0.5), Arm("varied", 0.5, settings={"diversity": 0.3})))
    >>> [trial.arm_of(user_id).name for user_id in range(1, 6)]
    ['control', 'varied', 'control', 'control', 'control']
    """

    name: str
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not all(re.fullmatch(r"[\w.\-]{1,60}", name) for name in (self.name, *names)):
            raise ConfigError("an experiment and its arms are named by 1 to 60 letters, digits, '_', '-' or '.'")
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"experiment {self.name}: it needs two or more arms of different names, got {names}")
        if min(arm.share for arm in self.arms) <= 0 or abs(sum(arm.share for arm in self.arms) - 1) > 1e-9:
            raise ConfigError(f"experiment {self.name}: the shares of its arms must be above 0 and add up to 1")

    def arm_of(self, user_id: int) -> Arm:
        place = uniform(self.name, user_id)
        for arm in self.arms:
            place -= arm.share
            if place < 0:
                return arm
        return self.arms[-1]


def uniform(salt: str, user_id: int) -> float:
    """A number in [0, 1) that depends on the salt and the user alone; the first 53 bits of a SHA-256."""
    digest = hashlib.sha256(f"{salt}\0{user_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
