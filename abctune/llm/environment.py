"""Importing this sets what must be in the environment before torch and the Hugging Face libraries are."""

import logging
import os

# OpenMP threads that spin while another process uses the cores made a training step 8 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Everything is on disk: nothing may be fetched in the middle of a run.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Warnings at import that no user of ours can act on: optional kernels, a deprecation inside torchao.
for name in ("bitsandbytes.backends.cpu.ops", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
