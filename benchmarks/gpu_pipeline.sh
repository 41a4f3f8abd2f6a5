#!/usr/bin/env bash
# Scoring at the size of Llama-3.2-3B and the whole tiny study on a GPU (docs/performance.md).
# On a machine without a network, export PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder with the wheels that params.yaml pins>.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m benchmarks.eval_gpu
python -m benchmarks.gpu_pipeline
