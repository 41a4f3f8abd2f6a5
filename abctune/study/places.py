"""Paths of the comparison's inputs and results."""

from __future__ import annotations

from pathlib import Path

EVAL, TRAIN, DATA = Path("metrics/eval"), Path("metrics/train"), Path("data")
COLLECTED = Path("metrics/collected")  # one folder per variant: all that the comparison reads of it
SERVED = Path("metrics/served")  # <variant>/<format>.parquet: exported files on the test rows
SUMMARY, STUDY = Path("metrics/summary.json"), Path("metrics/study.json")
PLOTS = Path("plots")
