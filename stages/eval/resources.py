"""What scoring one model took."""

from __future__ import annotations

import time

from abctune.core.provenance import peak_reserved_gib, peak_rss_gib
from abctune.core.records import EvalResources


def resources_since(started: float) -> EvalResources:
    """Seconds since `started` (time.perf_counter), and this process's peak memory in GiB."""
    return EvalResources(
        seconds=round(time.perf_counter() - started, 2),
        peak_rss_gib=round(peak_rss_gib(), 3),
        peak_reserved_gib=peak_reserved_gib(),
    )
