import stages.common.offline  # noqa: F401  (before torch)
