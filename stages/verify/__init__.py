"""Not a step of the pipeline: looks at what its steps have made, and may therefore import them."""

import stages.common.offline  # noqa: F401  (before torch)
