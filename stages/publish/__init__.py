"""Not a step of the pipeline: sends out what its steps have made, once stages.verify finds nothing wrong with it."""

import os

os.environ.setdefault(
    "HF_HUB_OFFLINE", "0"
)  # stages.common.offline would switch the hub off, for the pipeline
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # both are read when the client is imported

import stages.common.offline  # noqa: F401  (before torch)
