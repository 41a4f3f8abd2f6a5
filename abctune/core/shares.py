"""The interval of a share, without scipy, which a Space that shows votes does not have."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson(passed: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927): sensible at 0 of n and n of n too, unlike share ± 2 standard errors."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = passed / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return (0.0 if passed == 0 else middle - half), (1.0 if passed == n else middle + half)
