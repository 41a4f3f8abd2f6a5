"""Not a step of the pipeline: sends out what its steps have made, once tools.verify finds nothing wrong with it."""

import os

os.environ.setdefault(
    "HF_HUB_OFFLINE", "0"
)  # abctune.llm.environment would switch the hub off, for the pipeline
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # both are read when the client is imported

import abctune.llm.environment  # noqa: F401  (before torch)
