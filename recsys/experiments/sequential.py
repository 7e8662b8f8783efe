"""Tests that may be looked at every day: always-valid p-values and intervals.

A mixture sequential probability ratio test with a normal mixture over the effect (Johari, Koomen, Pekelis and Walsh
2017, "Peeking at A/B tests"). Whenever one stops, a difference that is not there is found in at most `alpha` of all
experiments.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SequentialTest:
    """expected: the size of effect that the test is quickest for, as a standard deviation of the mixture, in the units
    of the metric. Another size costs time, never validity."""

    expected: float

    def p_value(self, difference: float, standard_error: float, before: float = 1.0) -> float:
        """`before` is the p-value of the look before: it never rises. 1 where nothing was measured.

        >>> test = SequentialTest(expected=0.02)
        >>> round(test.p_value(0.03, 0.01), 4), round(test.p_value(0.01, 0.01), 4)
        (0.0611, 1.0)
        """
        if standard_error <= 0:
            return before
        v, t = standard_error**2, self.expected**2
        log_ratio = 0.5 * math.log(v / (v + t)) + t * difference**2 / (2 * v * (v + t))
        return min(before, 1.0, math.exp(-log_ratio))

    def half_width(self, standard_error: float, alpha: float = 0.05) -> float:
        """Half of an interval around the difference that covers the truth at all looks at once."""
        v, t = standard_error**2, self.expected**2
        return float(np.sqrt(v * (v + t) / t * (2 * math.log(1 / alpha) + math.log((v + t) / v))))
