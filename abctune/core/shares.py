"""The interval of a share, without scipy, which a Space that shows votes does not have."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

LEVEL = 0.95  # of every interval


def wilson(passed: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): sensible at 0 of n and n of n too, unlike share ± 2 standard errors."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, spread = passed / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return (0.0 if passed == 0 else middle - half), (1.0 if passed == n else middle + half)
