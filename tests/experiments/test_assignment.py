"""Who gets which arm."""

import numpy as np
import pytest

from recsys.errors import ConfigError
from recsys.experiments.assignment import Arm, Experiment, uniform


def experiment(name: str, *shares: float) -> Experiment:
    return Experiment(name, tuple(Arm(f"arm{i}", share) for i, share in enumerate(shares)))


def test_arms_get_their_shares_and_experiments_split_independently():
    first, second = experiment("first", 0.2, 0.8), experiment("second", 0.2, 0.8)
    in_first = np.array([first.arm_of(user).name == "arm0" for user in range(20_000)])
    in_second = np.array([second.arm_of(user).name == "arm0" for user in range(20_000)])
    assert abs(in_first.mean() - 0.2) < 0.01
    assert abs((in_first & in_second).mean() - 0.04) < 0.005


def test_the_number_of_a_user_is_the_same_everywhere():
    assert uniform("salt", 1) == pytest.approx(0.17032, abs=5e-6)
    assert all(0 <= uniform("salt", user) < 1 for user in range(1_000))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ((Arm("a", 1.0),), "two or more arms"),
        ((Arm("a", 0.5), Arm("a", 0.5)), "two or more arms"),
        ((Arm("a", 0.5), Arm("b", 0.4)), "add up to 1"),
        ((Arm("a", 0.0), Arm("b", 1.0)), "above 0"),
        ((Arm("a b", 0.5), Arm("b", 0.5)), "letters"),
    ],
)
def test_impossible_arms_are_refused(arms: tuple[Arm, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        Experiment("trial", arms)
