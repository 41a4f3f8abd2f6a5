"""Where the stages write and read, as dvc.yaml names it."""

from __future__ import annotations

from pathlib import Path

# By fetch, mix, format and split.
RAW, GENERAL_TEXT = (
    Path("data/raw"),
    Path("data/general"),
)  # a folder per source; text that no variant trains on
MIXED, FORMATTED, SPLIT = Path("data/mixed"), Path("data/formatted"), Path("data/split")
REFUSED = Path("data/quarantine")  # where a stopped run of format or split leaves the rows that it refused
# By fetch, train and export.
MODELS, BASE_MODEL = Path("models"), Path("models/base")  # a folder per variant: its published adapter
REPLICATES, EXPORTED = Path("models/replicates"), Path("models/exported")
# By train, eval, collect, served and plot.
TRAIN, EVAL = Path("metrics/train"), Path("metrics/eval")
COLLECTED = Path("metrics/collected")  # one folder per variant: all that the comparison reads of it
SERVED = Path("metrics/served")  # <variant>/<format>.parquet: exported files on the test rows
SUMMARY, STUDY = Path("metrics/summary.json"), Path("metrics/study.json")
PLOTS, CARDS = Path("plots"), Path("plots/cards")
