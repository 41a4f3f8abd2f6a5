"""Not a step of the pipeline: looks at what its steps have made, and may therefore import them."""

import abctune.llm.environment  # noqa: F401  (before torch)
